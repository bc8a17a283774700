//! The command `millstream`: see `millstream --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millstream::inspect::command()
}
