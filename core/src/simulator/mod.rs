//! Whole lives of drives and jobs from seeds: no threads, no clock, everything that can go wrong.
//!
//! A seed is a run. It chooses what the run is made of (`recipe`), and then what happens in it: who of the workers, the
//! guests and the host comes next, how long requests take, which of them fail. The code that runs is the real one, from the
//! verbs of a job down to the requests of a ring; only the disks and the time are made up ([`ring::sim`](crate::ring::sim)).
//!
//! | file | idea |
//! |---|---|
//! | `recipe` | what a run is made of |
//! | `simulation` | who is there, and who comes next |
//! | `guests` | host threads with queues |
//! | `tracked` | host threads that do their own I/O, with trackers |
//! | `recording` | bitmaps of the drive, and what must be in them |
//! | `host` | commands at random times, and the end of each job |
//! | `model` | what the drive may hold, byte by byte, also after a power failure |
//! | `watch` | what must hold at every moment and at the end of the run |
//! | `ready` | what must hold when a job is ready, and after that |
//! | `told` | what the host hears must be so |
//! | `outcome` | what must hold at the end of a job |
//!
//! What is checked: an acknowledged guest write is on the drive; every request completes once and is refused for lack of room only;
//! a job's outcome is true, in how it ended, why, how long the pause was and what is left; "ready" is true; so is every error that
//! the host hears of; a chunk that differs is dirty or somebody's; nobody but the guest writes the source; after every end the gate
//! is open and the job detached; the drive's bitmaps know of every write; nothing hangs; a target's error is not the guest's; the
//! gate is closed for `max_pause` at most; after a power failure what was flushed is there.
//!
//! A run that fails says how to have it again: `BLKMIRROR_SEED=<seed> cargo test -p blkmirror-core --lib simulator::tests::replay`.
#![forbid(unsafe_code)]

mod guests;
mod host;
pub(crate) mod model;
mod outcome;
mod ready;
mod recipe;
mod recording;
mod simulation;
mod told;
mod tracked;
mod watch;

#[cfg(test)]
mod tests;

pub use simulation::Story;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::mirror::Mutation;
use recipe::Recipe;
use simulation::{Simulation, Wrong};

/// Runs a seed, with the protocol as it is or broken in one way.
///
/// # Errors
/// What was wrong, the seed and its recipe, and how to run it again.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Result<Story, String> {
    guarded(seed, mutation, || run_recipe(&Recipe::new(seed), mutation))
}

/// Runs a seed's recipe.
fn run_recipe(recipe: &Recipe, mutation: Option<Mutation>) -> Result<Story, String> {
    let tell = |wrong: &Wrong, when: String| format!("{wrong}\n{when}\n{recipe:#?}");
    let simulation =
        Simulation::new(recipe.clone(), mutation).map_err(|wrong| tell(&wrong, String::new()))?;
    simulation.run().map_err(|(simulation, wrong)| {
        let story = simulation.story;
        let events = &simulation.watch.last_events;
        let events: Vec<_> = events.iter().rev().take(20).rev().map(|event| format!("{event:?}")).collect();
        let events = events.join("\n");
        tell(
            &wrong,
            format!("after {} steps, at {} ns; the last events:\n{events}", story.steps, story.time_ns),
        )
    })
}

/// Runs what a seed is made of, and says of every failure which seed it was and how to have it again. A panic is a failure like
/// any other: in a worker it would be caught, but in a queue, a tracker or the simulator itself nobody else holds it, and a
/// panic without its seed is of no use.
fn guarded(
    seed: u64,
    mutation: Option<Mutation>,
    run: impl FnOnce() -> Result<Story, String>,
) -> Result<Story, String> {
    // Nothing of the run is looked at after a panic, so nothing that is half done is seen.
    let ended = catch_unwind(AssertUnwindSafe(run));
    ended.unwrap_or_else(|panic| Err(format!("a panic: {}", words_of(&*panic)))).map_err(|wrong| {
        let broken = mutation.map_or(String::new(), |mutation| format!("BLKMIRROR_MUTATION={mutation:?} "));
        format!(
            "seed {seed}: {wrong}\nto run it again: {broken}BLKMIRROR_SEED={seed} \
             cargo test -p blkmirror-core --lib simulator::tests::replay -- --nocapture"
        )
    })
}

/// What a panic said; where it was, is in what the panic printed.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}
