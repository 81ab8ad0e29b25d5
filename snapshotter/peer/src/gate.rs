//! Lets what nobody waits for stand still while something urgent moves.

use std::time::Duration;

use tokio::sync::watch;

/// The longest pause before the next bytes: both sides of a connection must see that it lives, and a reader that waits for what
/// never comes must not hold up everything.
const PAUSE: Duration = Duration::from_millis(500);

/// One direction of the node's link.
#[derive(Debug)]
pub(crate) struct Gate(watch::Sender<usize>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Gate {
    /// Something urgent moves until the value is dropped.
    pub(crate) fn close(&self) -> Closed<'_> {
        self.0.send_modify(|urgent| *urgent += 1);
        Closed(self)
    }

    /// Whether something urgent moves, for who knows of all of it at once.
    pub(crate) fn set_closed(&self, closed: bool) {
        self.0
            .send_if_modified(|urgent| std::mem::replace(urgent, usize::from(closed)) != usize::from(closed));
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Waits until nothing urgent moves, but not for long.
    pub(crate) async fn pass(&self) {
        if self.is_closed() {
            // Who set it is here, so the wait cannot fail; it may time out.
            let _ = tokio::time::timeout(PAUSE, self.0.subscribe().wait_for(|urgent| *urgent == 0)).await;
        }
    }
}

/// See [`Gate::close`].
#[derive(Debug)]
pub(crate) struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|urgent| *urgent -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_opens_with_the_last_and_never_stays_closed() {
        let gate = Gate::default();
        let started = tokio::time::Instant::now();
        gate.pass().await;
        let (one, two) = (gate.close(), gate.close());
        drop(one);
        gate.pass().await;
        assert!(started.elapsed() >= PAUSE);
        let opened = async {
            tokio::task::yield_now().await;
            drop(two);
        };
        // A gate that did not open would let it wait another pause.
        let last = async {
            tokio::join!(gate.pass(), opened);
            gate.pass().await;
        };
        tokio::time::timeout(PAUSE / 2, last).await.unwrap();
    }
}
