//! Checks against the reference, and timers: a time is shown only of what was found right.

pub mod check;
