//! The second guard of the memory of state. The first counts what entries take; what they point to
//! is known only as far as it was encoded. This one asks the system how much memory the process may
//! still take. Before the system ends the process, the run ends, with an error that says why.

use std::time::{Duration, Instant};

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

use crate::words::{ByteSize, Error, ErrorKind, Result};

use super::plan::Meter;
use super::shared::Run;

/// The longest and the shortest time between two looks.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// The run ends when less than this part of the memory is left, or than the least: what is loaded
/// at once, a block of a file, takes some megabytes. The most is enough for any.
const RESERVE_PART: u64 = 16;
const RESERVE: (u64, u64) = (16 << 20, 256 << 20);

/// The memory that the process may take, by one of the limits of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SystemMemory {
    /// How much there is, for this process and others.
    total: u64,
    /// How much of it is left.
    left: u64,
    /// How much of it the process has.
    resident: u64,
}

impl SystemMemory {
    /// Whether the system will soon end a process, and most likely this one.
    fn is_scarce(self) -> bool {
        self.left < (self.total / RESERVE_PART).clamp(RESERVE.0, RESERVE.1) && self.resident > self.total / 4
    }

    /// When to look again: sooner when little would be left by then. `left` is what was left that
    /// long ago.
    fn pause(self, left: u64, since: Duration) -> Duration {
        let lost = left.saturating_sub(self.left);
        let (shortest, longest) = LOOK_EVERY;
        let rest = since.as_secs_f64() * self.left as f64 / lost.max(1) as f64;
        Duration::try_from_secs_f64(rest / 4.0).unwrap_or(longest).clamp(shortest, longest)
    }
}

/// How the memory of the process is found out; `None` when the system does not tell.
type Ask = Box<dyn FnMut() -> Option<SystemMemory> + Send>;

/// Looks at the memory of the process.
pub(super) struct MemoryGuard {
    ask: Ask,
    next: Instant,
    /// What was left when it last looked, and when that was.
    before: Option<(u64, Instant)>,
}

impl MemoryGuard {
    pub(super) fn new(job: &str) -> MemoryGuard {
        MemoryGuard { ask: ask(job), next: Instant::now(), before: None }
    }

    /// When it wants to look again.
    pub(super) fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Looks, if it is time to.
    ///
    /// # Errors
    /// When the system will soon end the process: which operator has the most state.
    pub(super) fn look(&mut self, run: &Run) -> Result<()> {
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        self.look_now(run)
    }

    /// As [`look`](MemoryGuard::look), whatever the time.
    ///
    /// # Errors
    /// As there.
    pub(super) fn look_now(&mut self, run: &Run) -> Result<()> {
        let now = Instant::now();
        self.next = now + LOOK_EVERY.1;
        let Some(memory) = (self.ask)() else { return Ok(()) };
        if memory.is_scarce() {
            run.state_budget.exhaust();
            return Err(is_scarce(memory, run));
        }
        run.state_budget.allow(ByteSize(memory.left));
        if let Some((left, looked)) = self.before.replace((memory.left, now)) {
            self.next = now + memory.pause(left, now - looked);
        }
        Ok(())
    }
}

/// Asks the system.
fn of_process() -> Ask {
    let mut of_system = System::new().ok().zip(get_current_pid().ok());
    Box::new(move || {
        let (system, process) = of_system.as_mut()?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[*process]), false, kind);
        let process = system.process(*process)?;
        let resident = process.memory();
        let machine = SystemMemory { total: system.total_memory(), left: system.available_memory(), resident };
        // Files that the system keeps in memory count as free, because it can drop them.
        let of_group = |limits: sysinfo::CGroupLimits| SystemMemory {
            total: limits.total_memory,
            left: limits.total_memory.saturating_sub(limits.rss),
            resident,
        };
        let group = process.cgroup_limits().map(of_group);
        [Some(machine), group].into_iter().flatten().min_by_key(|memory| memory.left)
    })
}

#[cfg(not(test))]
fn ask(_: &str) -> Ask {
    of_process()
}

#[cfg(test)]
fn ask(job: &str) -> Ask {
    let (mut ask, job) = (of_process(), job.to_owned());
    Box::new(move || tests::pretended(&job).or_else(&mut ask))
}

fn is_scarce(memory: SystemMemory, run: &Run) -> Error {
    let kept = run.plan.nodes().filter_map(|(node, meter)| match meter {
        Meter::Stage(meter) => Some((meter.state_bytes.get(), node.name.as_str())),
        Meter::Source(_) | Meter::Sink(_) => None,
    });
    let (most, name) = kept.max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    let SystemMemory { total, left, resident } = memory;
    let doing = format!(
        "the process has {} in memory, and {} are left of {}: the system would soon end it; `{name}` has the \
         most state of the job, {} of it known",
        ByteSize(resident),
        ByteSize(left),
        ByteSize(total),
        ByteSize(most)
    );
    Error::new(ErrorKind::State, doing)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex};

    use super::*;
    use crate::words::lock;

    static PRETENDED: LazyLock<Mutex<HashMap<String, SystemMemory>>> = LazyLock::new(Mutex::default);

    pub(super) fn pretended(job: &str) -> Option<SystemMemory> {
        lock(&PRETENDED).get(job).copied()
    }

    /// From now on a job of that name finds the memory of its process to be scarce.
    pub(crate) fn pretend_that_memory_is_scarce(job: &str) {
        let memory = SystemMemory { total: 1 << 30, left: 50 << 20, resident: 900 << 20 };
        lock(&PRETENDED).insert(job.to_owned(), memory);
    }

    const MB: u64 = 1 << 20;

    #[test]
    fn memory_is_scarce_before_it_is_used_up_and_only_if_this_process_has_it() {
        let memory =
            |total, left, resident| SystemMemory { total: total * MB, left: left * MB, resident: resident * MB };
        assert!(memory(1_024, 63, 900).is_scarce());
        assert!(!memory(1_024, 65, 900).is_scarce());
        assert!(!memory(1_024, 10, 200).is_scarce(), "others have it");
        assert!(memory(60, 15, 40).is_scarce(), "a block would not fit any more");
        assert!(!memory(64 * 1_024, 300, 60_000).is_scarce(), "no more is reserved of much memory");
        assert!(memory(64 * 1_024, 250, 60_000).is_scarce());
    }

    #[test]
    fn it_looks_again_before_the_rest_is_used_up() {
        let (rest, second) = (SystemMemory { total: 1_000, left: 100, resident: 800 }, Duration::from_secs(1));
        assert_eq!(rest.pause(100, second), LOOK_EVERY.1, "nothing is used up");
        assert_eq!(rest.pause(50, second), LOOK_EVERY.1, "some was given back");
        assert_eq!(rest.pause(1_100, second), Duration::from_millis(25), "the rest is used up in 100 ms");
        assert_eq!(rest.pause(1_000_000, second), LOOK_EVERY.0);
    }

    #[test]
    fn the_system_tells() {
        let memory = of_process()().expect("a system on which these tests run");
        assert!(memory.resident > MB && memory.left > 0 && memory.left <= memory.total, "{memory:?}");
    }
}
