//! The one thread that keeps requests until their time has come.
//!
//! It also carries them out and answers them: a request waits concurrently with any number of others, and takes effect
//! when it is answered.
#![forbid(unsafe_code)]

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::pending::Pending;

/// Requests ordered by the time of their answer.
#[derive(Debug, Default)]
pub(super) struct Timer {
    /// What the thread and those who add to it share.
    queue: Mutex<Queue>,
    /// Wakes the thread up when the earliest time has changed.
    changed: Condvar,
}

/// The state under the lock.
#[derive(Debug, Default)]
struct Queue {
    /// Earliest first.
    waiting: BinaryHeap<Reverse<Entry>>,
    /// Keeps requests of the same time in order.
    next_number: u64,
    /// No more waiting: everything is due.
    closed: bool,
}

/// A request and its time.
#[derive(Debug)]
struct Entry {
    /// When it is to be answered.
    due: Instant,
    /// Ties are broken by arrival.
    number: u64,
    /// The request.
    pending: Pending,
}

impl Timer {
    /// Keeps `pending` until `due`.
    pub(super) fn add(&self, due: Instant, pending: Pending) {
        let mut queue = self.lock();
        let number = queue.next_number;
        queue.next_number += 1;
        let earliest = queue.waiting.peek().is_none_or(|Reverse(first)| due < first.due);
        queue.waiting.push(Reverse(Entry { due, number, pending }));
        if earliest {
            self.changed.notify_one();
        }
    }

    /// Makes everything due, now and from now on, and lets the thread end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for what is due next and appends it to `due`, with all that is due as well. `false` when closed and empty.
    pub(super) fn wait(&self, due: &mut Vec<Pending>) -> bool {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            while let Some(Reverse(first)) = queue.waiting.peek() {
                if !queue.closed && first.due > now {
                    break;
                }
                due.extend(queue.waiting.pop().map(|Reverse(entry)| entry.pending));
            }
            if !due.is_empty() {
                return true;
            }
            if queue.closed {
                return false;
            }
            queue = match queue.waiting.peek() {
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Reverse(first)) => {
                    let pause = first.due.saturating_duration_since(now);
                    self.changed.wait_timeout(queue, pause).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// The queue; nobody panics while holding it.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
