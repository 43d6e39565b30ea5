//! What the core hands to threads of its own: a queue that it fills in batches and never waits for.
//!
//! It wakes nobody who is at work anyway: a call for each of thousands of tasks would cost the core more
//! than most of them cost who carries them out. Who fills it sees to it that there is a bound.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queue.
#[derive(Debug)]
pub(super) struct Line<T> {
    queue: Mutex<Queue<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<T>,
    /// How many threads have found nothing that suits them.
    idle: usize,
    is_closed: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        let queue = Queue { waiting: VecDeque::new(), idle: 0, is_closed: false };
        Self { queue: Mutex::new(queue), filled: Condvar::new() }
    }
}

impl<T> Line<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends all of these; they are gone from `things` then.
    pub(super) fn put(&self, things: &mut Vec<T>) {
        if things.is_empty() {
            return;
        }
        let mut queue = self.queue();
        queue.waiting.extend(things.drain(..));
        if queue.idle > 0 {
            // All: the one that wakes first may not be one that they suit.
            self.filled.notify_all();
        }
    }

    /// Takes the first that suits, as soon as there is one; nothing when the line is closed. `rest` is called
    /// before the thread waits.
    pub(super) fn next(&self, suits: impl Fn(&T) -> bool, mut rest: impl FnMut()) -> Option<T> {
        let mut queue = self.queue();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(first) = queue.waiting.iter().position(&suits) {
                return queue.waiting.remove(first);
            }
            rest();
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// Drops what waits, and lets the threads end when they are done with what they have.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.is_closed = true;
        queue.waiting.clear();
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn nothing_stays_behind_with_threads_that_take_not_everything() {
        let line = Line::default();
        let (done, results) = channel();
        thread::scope(|scope| {
            for takes_odd in [true, false, false] {
                let (line, done) = (&line, done.clone());
                scope.spawn(move || {
                    while let Some(number) =
                        line.next(|n: &u32| takes_odd || n.is_multiple_of(2), || ())
                    {
                        done.send(number).unwrap();
                    }
                });
            }
            // One at a time, so that the threads wait in between, and many at once.
            let one_by_one = (0..1000).map_while(|number| {
                line.put(&mut vec![number]);
                results.recv_timeout(PATIENCE).ok()
            });
            let mut taken: Vec<u32> = one_by_one.collect();
            line.put(&mut (1000..10_000).collect());
            taken.extend((1000..10_000).map_while(|_| results.recv_timeout(PATIENCE).ok()));
            line.close();
            assert!(taken.iter().take(1000).copied().eq(0..1000));
            taken.sort_unstable();
            assert!(taken.into_iter().eq(0..10_000));
        });
    }
}
