//! Checks against the reference, and timers: a time is shown only of what was found right.
//!
//! | module | what it holds |
//! |---|---|
//! | [`check`] | every pass of an implementation against the f64 reference, at ragged shapes |
//! | [`sampled`] | the same for large shapes, on a sample of rows |
//! | [`timer`] | samples of a call's time on a device, with warm or flushed caches |
//! | [`peaks`] | what the machine can do at best, measured in the same run |
//! | [`work`] | FLOP and bytes that a pass cannot do without, and the floor of its time |
//! | [`case`] | one case of the microbenchmark: checked, then timed |
//! | [`memory`] | the peak of a process's memory over a stretch of work |
//! | [`peers`] | what others offer for the same work, measured by scripts |
//! | [`mistakes`] | what a trained network gets wrong |
//! | [`record`] | the one serialisable record, a JSON object a line |

pub mod case;
pub mod check;
pub mod memory;
pub mod mistakes;
pub mod peaks;
pub mod peers;
pub mod record;
pub mod sampled;
pub mod timer;
pub mod work;
