//! The command `millstream`, which shows what a job keeps in its directory of checkpoints. It only
//! reads, also while the job runs.

mod list;
mod entries;

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::state::inspect::Checkpoints;
use crate::words::{CheckpointId, Error};

use entries::Wanted;

/// Looks at what jobs of millstream keep
#[derive(Debug, Parser)]
#[command(name = "millstream", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the checkpoints in a directory, and the state that they hold
    #[command(after_help = AFTER_HELP)]
    State(StateFlags),
}

const AFTER_HELP: &str = "\
Without a flag it lists the checkpoints, the newest first, and the positions of sources and the
sizes of operators in the newest. It only reads, and may be used while the job runs.

--show prints a line {\"key\":…,\"state\":…} for each entry, in the order of the keys; a large state
is printed in parts, of which each has this order. Bytes are text in base 16, and so is what cannot
be read by its type. Integers of more than 64 bits and floats that are not finite are text. A map
whose keys are not text is an array of [key, value].

Exit status: 0, or 1 if something is damaged or does not exist, or 2 for a wrong flag.";

#[derive(Debug, Args)]
struct StateFlags {
    /// The directory that the job was given with `Job::checkpoints`
    directory: PathBuf,
    /// Read every byte of every checkpoint, and name each file that is damaged
    #[arg(long, conflicts_with_all = ["show", "diff"])]
    verify: bool,
    /// Print the state of this operator as lines of JSON
    #[arg(long, value_name = "OPERATOR")]
    show: Option<String>,
    /// Only the entry of this key: JSON, or the text of a key that is text
    #[arg(long, value_name = "JSON", requires = "show", allow_negative_numbers = true)]
    key: Option<String>,
    /// Only keys that begin with this, by their text or else by their JSON
    #[arg(long, value_name = "TEXT", requires = "show", conflicts_with = "key", allow_negative_numbers = true)]
    prefix: Option<String>,
    /// Look at this checkpoint, not at the newest
    #[arg(long, value_name = "NUMBER", conflicts_with = "diff")]
    checkpoint: Option<u64>,
    /// Count what has changed from one checkpoint to another, or print it with --show
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    diff: Option<Vec<u64>>,
}

/// Runs the command that the program's arguments name, and returns its exit status.
pub fn command() -> ExitCode {
    let Flags { command: Command::State(state) } = Flags::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(&state, &mut out).and_then(|()| Ok(out.flush()?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // What reads the output has seen enough.
        Err(Failed::Output(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failed) => {
            // What was found before stands above the error.
            let _ = out.flush();
            note(format_args!("error: {failed}"));
            ExitCode::FAILURE
        }
    }
}

/// Why the command could not do what it was asked for.
#[derive(Debug)]
enum Failed {
    Output(io::Error),
    Input(Error),
}

type Done = Result<(), Failed>;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Output(cause) => write!(f, "cannot write the output: {cause}"),
            Failed::Input(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(cause: io::Error) -> Failed {
        Failed::Output(cause)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Input(error)
    }
}

/// Says something that is not part of the output.
fn note(what: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}

fn run(flags: &StateFlags, out: &mut impl Write) -> Done {
    let checkpoints = Checkpoints::in_directory(&flags.directory)?;
    let number = flags.checkpoint.map(CheckpointId::new);
    if flags.verify {
        return list::verify(&checkpoints, number, out);
    }
    match (flags.diff.as_deref(), &flags.show) {
        (Some(&[from, to]), operator) => {
            let mut before = checkpoints.whole(Some(CheckpointId::new(from)))?;
            let mut after = checkpoints.whole(Some(CheckpointId::new(to)))?;
            match operator {
                Some(operator) => entries::show_changes(&mut before, &mut after, operator, &Wanted::of(flags), out),
                None => list::count_changes(&mut before, &mut after, out),
            }
        }
        (_, Some(operator)) => entries::show(&mut checkpoints.whole(number)?, operator, &Wanted::of(flags), out),
        (_, None) => list::list(&checkpoints, number, out),
    }
}
