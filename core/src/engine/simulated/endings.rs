//! How jobs end: by cancel, panic, broken rings, requests that never come back; what is missing is known then.

use super::*;

#[test]
fn a_cancelled_job_ends_and_says_what_is_missing() {
    for seed in seeds() {
        let faults = Faults { stuck: if seed % 2 == 0 { 2 } else { 0 }, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, ..Recipe::default() });
        let mut asked = None;
        let outcome = sim.run(|sim, n| {
            if n == 10 + seed % 60 {
                sim.job.cancel(Cancel::Force).unwrap();
                asked = Some(sim.world.now_ns());
            }
        });
        assert!(outcome.cancelled || outcome.target == TargetState::Complete);
        let since = asked.map_or(0, |at| sim.world.now_ns() - at);
        assert!(since < 1_000_000_000, "seed {seed}: it took {since} ns to end");
        sim.check(&outcome);
    }
}

#[test]
fn a_panic_in_the_logic_fails_the_job_and_the_worker_lives() {
    let mut options = Recipe::default().options;
    options.zero_detect = true;
    let faults = Faults { panic_on_look: true, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert_eq!(outcome.error.unwrap().kind(), crate::ErrorKind::Internal);
    assert!(sim.workers.iter().all(|w| w.2), "the workers go on");
    while sim.step() {}
    assert!(sim.workers.iter().all(|w| w.0.window_used_bytes() == 0), "other jobs have the whole window");
}

#[test]
fn nobody_writes_to_the_target_after_the_verdict() {
    let mut sim = Sim::new(&Recipe::default());
    let mut outcome = None;
    for _ in 0..3_000_000 {
        if sim.job.core().is_over() {
            outcome = sim.job.core().share.is_finished().then_some(());
            break;
        }
        assert!(sim.step());
    }
    assert!(outcome.is_some());
    let writes = sim.target.writes();
    sim.job.core().share.dirty.mark(ByteRange::at(0, 65536));
    for _ in 0..1000 {
        if !sim.step() {
            break;
        }
    }
    assert_eq!(sim.target.writes(), writes, "the target was written after the job had concluded");
}

#[test]
fn what_was_in_hand_when_a_panic_was_caught_is_dirty() {
    let mut options = Recipe::default().options;
    options.zero_detect = true;
    let faults = Faults { panic_on_look: true, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, bytes: 40 << 20, ..Recipe::default() });
    sim.claims_may_stay = true;
    let outcome = sim.run(|_, _| ());
    sim.check(&outcome);
}

#[test]
fn what_never_came_back_is_dirty() {
    let faults = Faults { stuck: 20, ..PASSING };
    let mut sim = Sim::new(&Recipe { faults, ..Recipe::default() });
    let outcome = sim.run(|sim, n| {
        if n == 40 {
            sim.job.cancel(Cancel::Force).unwrap();
        }
    });
    sim.check(&outcome);
}

/// A part that waits in the mailbox of a worker whose ring breaks.
mod broken_ring {
    use super::*;
    use crate::buffer::{BufRange, HostMemory};
    use crate::device::Extent;
    use crate::error::Result;
    use crate::ring::{Completion, DeviceSlot, Full, Request, Tag, Wait, Wake};

    /// A part that comes with the last mail.
    type Late = (SyncSender<Mail<SimDisk>>, Mail<SimDisk>);

    struct Breaking {
        inner: SimRing,
        turns: u32,
        late: Option<Late>,
    }

    impl Ring for Breaking {
        type Device = SimDisk;
        fn attach(&mut self, d: &Arc<SimDisk>) -> Result<DeviceSlot> {
            self.inner.attach(d)
        }
        fn detach(&mut self, s: DeviceSlot) {
            self.inner.detach(s);
        }
        fn push(&mut self, r: Request, t: Tag) -> std::result::Result<(), Full> {
            self.inner.push(r, t)
        }
        fn enter(&mut self, w: Wait) -> Result<()> {
            self.turns += 1;
            if self.turns == 3 {
                if let Some((inbox, part)) = self.late.take() {
                    inbox.send(part).unwrap();
                }
                return Err(crate::Error::from_errno("run the io_uring", libc::ENOMEM));
            }
            self.inner.enter(w)
        }
        fn pop(&mut self) -> Option<Completion> {
            self.inner.pop()
        }
        fn in_flight(&self) -> usize {
            self.inner.in_flight()
        }

        fn capacity(&self) -> usize {
            self.inner.capacity()
        }
        fn now_ns(&self) -> u64 {
            self.inner.now_ns()
        }
        fn status(&mut self, s: DeviceSlot, o: u64) -> Result<Extent> {
            self.inner.status(s, o)
        }
        fn is_zero(&self, b: BufRange) -> bool {
            self.inner.is_zero(b)
        }
        fn stage(&mut self, from: HostMemory, into: BufRange) {
            self.inner.stage(from, into);
        }
        fn fill_zero(&mut self, b: BufRange) {
            self.inner.fill_zero(b);
        }
        fn memory_bytes(&self) -> usize {
            self.inner.memory_bytes()
        }
        fn waker(&self) -> Arc<dyn Wake> {
            self.inner.waker()
        }
    }

    #[test]
    fn a_ring_that_breaks_ends_the_jobs_at_work_and_in_the_mailbox() {
        let mut a = Sim::new(&Recipe { workers: 1, ..Recipe::default() });
        let b = Sim::new(&Recipe { workers: 1, ..Recipe::default() });
        let part = |s: &Sim| {
            let drive = DriveCore::new(Arc::clone(&s.source), 3 << 20, 512, false);
            let home = Home::new(&Recipe::default().options, drive, Arc::clone(&s.target));
            let devices = [Arc::clone(&s.source), Arc::clone(&s.target)];
            Box::new(Part::new(Arc::clone(s.job.core()), 0, devices, Some(Box::new(home))))
        };
        let (inbox, mailbox) = sync_channel(4);
        inbox.send(part(&a)).unwrap();
        let mut ring = Breaking {
            inner: SimRing::new(&a.world, 2 << 20),
            turns: 0,
            late: Some((inbox.clone(), part(&b))),
        };
        Worker::new(&ring, mailbox).run(&mut ring);
        let outcome = a.job.wait_for(std::time::Duration::from_secs(1)).unwrap();
        a.claims_may_stay = true;
        let lost = a.verdict(&outcome);
        let _ = b.job.cancel(Cancel::Force);
        let hangs = b.job.wait_for(std::time::Duration::from_secs(2)).is_none();
        assert!(
            !hangs && lost.is_ok(),
            "job in the mailbox hangs: {hangs}; dirty bits of the running job: {lost:?}"
        );
    }
}

#[test]
fn an_engine_ends_with_a_full_mailbox_too() {
    use crate::engine::{Engine, WorkerHandle};
    // Room for nothing stands for a full mailbox.
    let (inbox, mailbox) = sync_channel::<Mail<crate::device::Device>>(0);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        while mailbox.recv().is_ok() {}
    });
    let ring = SimRing::new(&World::new(1, Faults::default()), 4096);
    let worker =
        WorkerHandle { inbox: Some(inbox), waker: ring.waker(), contiguous: true, thread: Some(thread) };
    let engine = Engine { workers: vec![worker], next_home: 0.into(), jobs: Arc::default() };
    let (done, ended) = sync_channel(1);
    std::thread::spawn(move || {
        drop(engine);
        let _ = done.send(());
    });
    assert!(ended.recv_timeout(std::time::Duration::from_secs(2)).is_ok(), "dropping the engine hangs");
}

#[test]
fn an_engine_whose_requests_would_wait_for_memory_for_ever_is_refused() {
    let options = crate::engine::EngineOptions { window_bytes: 128 << 10, ..Default::default() };
    let error = crate::engine::Engine::start(options).map(drop).unwrap_err();
    assert!(
        error.kind() == crate::ErrorKind::InvalidArgument && error.to_string().contains("1048576"),
        "{error}"
    );
}
