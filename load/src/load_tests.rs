//! Whole loads on a disk in memory, right and wrong ones.

use blkmirror_core::units::MIB;

use super::*;
use crate::ledger::Untouched;
use crate::memory::{Fault, MemoryDisk, MemoryStore};
use crate::pattern::Pattern;
use crate::plan::{Areas, Arrival};

/// Size of the disk.
const DISK: u64 = 4 * MIB;

/// Runs a plan for a while on a disk with a fault; returns what was seen and whether the ledger is content.
fn run(plan: Plan, fault: Option<Fault>) -> (Period, bool) {
    let mut store = MemoryStore::new(DISK);
    if let Some(fault) = fault {
        store.set_fault(fault, 5);
    }
    let ledger = Arc::new(Ledger::new(DISK, plan.block_bytes, 3));
    let disk = store.clone();
    let open = move |_| Ok(disk.open(Duration::from_micros(300)));
    let load = Load::start(plan, Some(&ledger), open).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(load.is_running());
    let period = load.stop().unwrap();
    let proof = ledger.verify(&mut store, Untouched::Unchecked).unwrap();
    assert_eq!(proof.written_bytes, ledger.written_bytes());
    (period, proof.holds())
}

/// Every plan that a host may choose.
fn plans() -> impl Iterator<Item = Plan> {
    let arrivals = [Arrival::Open { per_s: 5000 }, Arrival::Closed];
    let patterns = [Pattern::Uniform, Pattern::Zipf, Pattern::Append];
    let areas = [Areas::Disjoint, Areas::Shared];
    let plan = Plan { depth: 16, zeroes_percent: 10, reads_percent: 10, flush_every: 100, ..Plan::default() };
    arrivals.into_iter().flat_map(move |arrival| {
        patterns.into_iter().flat_map(move |pattern| {
            areas.into_iter().map(move |areas| Plan { pattern, areas, arrival, ..plan })
        })
    })
}

/// A proof that a good disk does not pass is no proof; nor is one that a bad disk passes.
#[test]
fn a_good_disk_passes_and_one_that_loses_or_tears_writes_does_not() {
    for plan in plans() {
        let (period, holds) = run(plan, None);
        assert!(holds, "{plan:?}");
        assert!(period.writes.len() > 500 && period.errors == 0, "{plan:?}: {}", period.latency());
        assert!(!period.reads.is_empty());
    }
    let plan = Plan { arrival: Arrival::Closed, depth: 4, ..Plan::default() };
    assert!(!run(plan, Some(Fault::Lose)).1);
    assert!(!run(plan, Some(Fault::Tear)).1);
}

/// A guest goes on after an error, and its write may be there or not.
#[test]
fn failed_writes_are_counted_and_excuse_either_content() {
    let (period, holds) = run(Plan { arrival: Arrival::Closed, ..Plan::default() }, Some(Fault::Fail));
    assert!(holds);
    assert!(period.errors > 100 && period.first_error.is_some());
}

/// Coordinated omission: a disk that answers ten times more slowly than requests come must show it.
#[test]
fn latency_counts_from_the_intended_time() {
    let store = MemoryStore::new(DISK);
    let plan = Plan { writers: 1, depth: 1, arrival: Arrival::Open { per_s: 1000 }, ..Plan::default() };
    let load = Load::start(plan, None, move |_| Ok(store.open(Duration::from_millis(10)))).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let period = load.stop().unwrap();
    assert!(period.latency().max > Duration::from_millis(150), "{}", period.latency());
    assert!(period.lateness.max() > 100_000_000);
}

/// A load that does not keep its rate compares apples with pears.
#[test]
fn an_open_loop_keeps_its_rate() {
    let store = MemoryStore::new(DISK);
    let plan = Plan { arrival: Arrival::Open { per_s: 4000 }, ..Plan::default() };
    let load = Load::start(plan, None, move |_| Ok(store.open(Duration::from_micros(50)))).unwrap();
    let period = load.watch(Duration::from_millis(500));
    assert!((period.writes_per_s() - 4000.0).abs() < 400.0, "{}", period.writes_per_s());
    assert!(load.acknowledged() >= period.writes.len());
}

/// Nobody may wait for writers that never started.
#[test]
fn a_disk_that_cannot_be_opened_is_an_error_of_the_start() {
    let store = MemoryStore::new(DISK);
    let open = move |number| match number {
        1 => Err(Error::new(ErrorKind::Busy, "open the disk")),
        _ => Ok(store.open(Duration::ZERO)),
    };
    assert_eq!(Load::start(Plan::default(), None, open).unwrap_err().kind(), ErrorKind::Busy);
    let tiny = |_| Ok(MemoryStore::new(4096).open(Duration::ZERO));
    assert_eq!(Load::start(Plan::default(), None, tiny).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let ledger = Arc::new(Ledger::new(DISK, 8192, 1));
    assert!(Load::start::<MemoryDisk, _>(Plan::default(), Some(&ledger), tiny).is_err());
}
