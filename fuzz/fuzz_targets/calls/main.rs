//! Any sequence of calls with any numbers: what crashes, hangs, loses a completion or leaks a descriptor is a bug.
//!
//! | file | idea |
//! |---|---|
//! | `call` | what a call may be |
//! | `run` | the devices, the drive and all that hangs on it; closed at the end of each run |
//! | `queue`, `tracking`, `bitmap`, `job` | the calls by topic, with what must hold after each |
#![no_main]

mod bitmap;
mod call;
mod job;
mod queue;
mod run;
mod tracking;

use libfuzzer_sys::fuzz_target;

use self::call::Call;
use self::run::Run;

/// Calls in a run.
const CALLS: usize = 96;

/// Makes one call.
///
/// # Safety
/// All that the run holds was made by it and is not closed.
unsafe fn make(run: &mut Run, call: &Call) {
    // SAFETY: the caller's promise is what each of them asks for.
    unsafe {
        match *call {
            Call::NewQueue { depth, flags, staging } => run.new_queue(depth, flags, staging),
            Call::DropQueue => run.drop_queue(),
            Call::Read { at, len, shift, flags } => run.transfer(false, (at, len), shift, flags),
            Call::Write { at, len, shift, flags } => run.transfer(true, (at, len), shift, flags),
            Call::Vector { at, lens, write, count } => run.vector(at, lens, write, count),
            Call::Zeroes { at, len, flags } => run.zeroes(at, len, flags),
            Call::Discard { at, len, flags } => run.discard(at, len, flags),
            Call::Flush { flags } => run.flush(flags),
            Call::Submit => run.submit(),
            Call::Poll => run.poll(),
            Call::Process { min, max } => run.process_some(min, max),
            Call::Begin { at, len, kind } => run.begin(at, len, kind),
            Call::End { result, twice } => run.end(result, twice),
            Call::Spoil { word, bits } => run.spoil(word, bits),
            Call::NewBitmap { name, flags, granularity } => run.new_bitmap(name, flags, granularity),
            Call::DropBitmap => run.drop_bitmap(),
            Call::Bitmap { verb, at, len, most } => run.use_bitmap(verb, (at, len, most)),
            Call::Mirror(options) => run.mirror(&options),
            Call::DropJob => run.drop_job(),
            Call::Job { verb, number } => run.use_job(verb, number),
            Call::Event => run.take_event(),
            Call::MapMemory { at, len } => run.map_memory(at, len),
            Call::UnmapMemory { at, len } => run.unmap_memory(at, len),
            Call::Facts => run.facts(),
            Call::CloseQueue { wait } => run.close_queue(wait),
        }
    }
}

fuzz_target!(|calls: Vec<Call>| {
    let mut run = Run::new();
    for call in calls.iter().take(CALLS) {
        // SAFETY: the run holds what it made, and closes it where it takes it away.
        unsafe { make(&mut run, call) };
    }
});
