//! Bodies that are read as they arrive, counted, and watched for standstill.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::time::{Instant, Sleep};

use crate::error::{Place, RegistryError};

/// Where a chunk failed to come from.
pub(crate) enum Fault {
    Http(reqwest::Error),
    Disk(String, std::io::Error),
}

/// Chunks of an expected number of bytes. The only work per chunk is counting.
///
/// Standstill is seen by a timer that runs at half the idle limit and asks whether anything came since: a stalled body
/// fails after one to one and a half limits, and a flowing one never touches the timer.
pub(crate) struct Counted {
    chunks: BoxStream<'static, Result<Bytes, Fault>>,
    place: Box<Place>,
    expected: Option<u64>,
    received: u64,
    idle: Duration,
    tick: Pin<Box<Sleep>>,
    at_last_tick: u64,
    idle_ticks: u8,
    done: bool,
}

impl Counted {
    pub(crate) fn new(
        chunks: BoxStream<'static, Result<Bytes, Fault>>,
        place: Box<Place>,
        expected: Option<u64>,
        idle: Duration,
    ) -> Self {
        let tick = Box::pin(tokio::time::sleep(idle / 2));
        Self { chunks, place, expected, received: 0, idle, tick, at_last_tick: 0, idle_ticks: 0, done: false }
    }

    pub(crate) fn http(
        response: reqwest::Response,
        place: Box<Place>,
        expected: Option<u64>,
        idle: Duration,
    ) -> Self {
        let chunks = response.bytes_stream().map_err(|e| Fault::Http(e.without_url())).boxed();
        Self::new(chunks, place, expected, idle)
    }

    pub(crate) fn empty(place: Box<Place>) -> Self {
        Self::new(futures_util::stream::empty().boxed(), place, Some(0), Duration::from_secs(1))
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<RegistryError> {
        loop {
            ready!(self.tick.as_mut().poll(cx));
            self.idle_ticks = if self.received > self.at_last_tick { 0 } else { self.idle_ticks + 1 };
            self.at_last_tick = self.received;
            if self.idle_ticks >= 2 {
                return Poll::Ready(RegistryError::Stalled { place: self.place.clone(), idle: self.idle });
            }
            self.tick.as_mut().reset(Instant::now() + self.idle / 2);
        }
    }

    fn end(&self) -> Option<RegistryError> {
        let expected = self.expected?;
        (self.received < expected).then(|| RegistryError::Short {
            place: self.place.clone(),
            expected,
            received: self.received,
        })
    }

    fn fault(&self, fault: Fault) -> RegistryError {
        match fault {
            Fault::Http(source) => RegistryError::Transport { place: self.place.clone(), source },
            Fault::Disk(path, source) => RegistryError::Disk { path, source },
        }
    }
}

impl Stream for Counted {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        loop {
            let last = match self.chunks.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Poll::Ready(Some(Ok(chunk))) => {
                    self.received += chunk.len() as u64;
                    match self.expected {
                        Some(expected) if self.received > expected => {
                            Some(RegistryError::Long { place: self.place.clone(), expected })
                        }
                        _ => return Poll::Ready(Some(Ok(chunk))),
                    }
                }
                Poll::Ready(Some(Err(fault))) => Some(self.fault(fault)),
                Poll::Ready(None) => self.end(),
                Poll::Pending => Some(ready!(self.stalled(cx))),
            };
            self.done = true;
            // Nothing more is read, so the connection need not be held until the body is dropped.
            self.chunks = futures_util::stream::empty().boxed();
            return Poll::Ready(last.map(Err));
        }
    }
}

macro_rules! body_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(pub(crate) Counted);

        impl $name {
            /// The next bytes, never empty; `None` after the last. An error ends the body.
            ///
            /// Cancel-safe: a dropped call loses nothing.
            ///
            /// # Errors
            /// As the stream's items.
            pub async fn chunk(&mut self) -> Option<Result<Bytes, RegistryError>> {
                self.0.next().await
            }
        }

        impl Stream for $name {
            type Item = Result<Bytes, RegistryError>;

            fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                self.0.poll_next_unpin(cx)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("place", &self.0.place)
                    .field("expected", &self.0.expected)
                    .field("received", &self.0.received)
                    .finish_non_exhaustive()
            }
        }
    };
}

body_type! {
    /// A whole blob as it arrives, **not verified**: the reader must check the digest of what it got.
    BlobBody
}

body_type! {
    /// Exactly the bytes of a range as they arrive, or an error; **not verified** beyond their number.
    ///
    /// Dropping it early closes its connection.
    RangeBody
}

impl BlobBody {
    /// The blob's size in bytes, where the other side told it.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.0.expected
    }
}

impl RangeBody {
    /// Bytes the whole body has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.expected.unwrap_or(0)
    }
}

/// Reads a body of at most `limit` bytes into memory.
pub(crate) async fn collect(mut body: Counted, limit: u64) -> Result<Bytes, RegistryError> {
    let too_large = |place: &Place| RegistryError::TooLarge { place: Box::new(place.clone()), limit };
    if body.expected.is_some_and(|expected| expected > limit) {
        return Err(too_large(&body.place));
    }
    // A stranger's length is a hint: memory is taken as bytes arrive, past the first MiB.
    let mut bytes = BytesMut::with_capacity(body.expected.unwrap_or(0).min(1 << 20) as usize);
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            return Err(too_large(&body.place));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Object;
    use crate::repository::Repository;
    use futures_util::stream;
    use proptest::prelude::*;

    fn place() -> Box<Place> {
        let repository = Repository::new("example.com", "a").ok();
        Box::new(Place { object: Object::Upload, repository, host: "example.com".into() })
    }

    fn body(chunks: &[usize], expected: Option<u64>) -> Counted {
        let chunks: Vec<_> = chunks.iter().map(|len| Ok(Bytes::from(vec![7; *len]))).collect();
        Counted::new(stream::iter(chunks).boxed(), place(), expected, Duration::from_secs(1))
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn a_body_that_stands_still_fails_not_before_its_limit() {
        run(async {
            let idle = Duration::from_millis(60);
            let chunks = stream::iter([Ok(Bytes::from_static(b"x"))]).chain(stream::pending()).boxed();
            let mut body = Counted::new(chunks, place(), Some(2), idle);
            let start = Instant::now();
            assert!(body.next().await.unwrap().is_ok());
            assert!(matches!(body.next().await, Some(Err(RegistryError::Stalled { .. }))));
            assert!(start.elapsed() >= idle);
            assert!(body.next().await.is_none());
        });
    }

    #[test]
    fn a_slow_body_is_not_a_stalled_one() {
        run(async {
            let idle = Duration::from_millis(200);
            let chunks = stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                (n < 20).then(|| (Ok(Bytes::from_static(b"x")), n + 1))
            });
            assert_eq!(
                collect(Counted::new(chunks.boxed(), place(), Some(20), idle), 20).await.unwrap().len(),
                20
            );
        });
    }

    proptest! {
        #[test]
        fn exactly_the_expected_bytes_or_an_error(
            chunks in prop::collection::vec(0usize..9, 0..6), expected in prop::option::of(0u64..30), limit in 0u64..30,
        ) {
            let sum = chunks.iter().sum::<usize>() as u64;
            let expected = expected.map(|e| if e % 3 == 0 { sum } else { e });
            let result = run(async { collect(body(&chunks, expected), limit).await });
            match result {
                Ok(bytes) => {
                    prop_assert_eq!(bytes.len() as u64, sum);
                    prop_assert!(sum <= limit && expected.is_none_or(|e| e == sum));
                }
                Err(RegistryError::TooLarge { .. }) => prop_assert!(sum > limit || expected.unwrap() > limit),
                Err(RegistryError::Short { .. }) => prop_assert!(sum < expected.unwrap()),
                Err(RegistryError::Long { .. }) => prop_assert!(sum > expected.unwrap()),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
