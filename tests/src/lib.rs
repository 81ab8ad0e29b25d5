//! End-to-end tests, the demo and benchmarks, on real parts.
