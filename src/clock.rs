//! The date and time in UTC, as people write them, and when this process began. Civil dates need a few lines of arithmetic,
//! not a dependency.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// When this process began, as the system has it: before the loader and the flags, so that a time since then is one that the
/// user waits. Where the system does not tell (elsewhere than on Linux), the moment at which this is first asked.
///
/// Linux counts in hundredths of a second and rounds down, so times since then are up to 10 ms too long, never too short.
pub fn process_began() -> Instant {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    *BEGAN.get_or_init(|| {
        let now = Instant::now();
        process_age().and_then(|age| now.checked_sub(age)).unwrap_or(now)
    })
}

#[cfg(target_os = "linux")]
fn process_age() -> Option<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, which is ours. This clock runs while the machine sleeps, as that of process starts does.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) } != 0 {
        return None;
    }
    let now = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
    // SAFETY: it reads a constant of the system.
    let ticks_per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    let began = start_ticks(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    now.checked_sub(Duration::from_millis(began.checked_mul(1000)?.checked_div(ticks_per_second)?))
}

#[cfg(not(target_os = "linux"))]
fn process_age() -> Option<Duration> {
    None
}

/// The start of a process in ticks since the machine's, from the text of /proc/PID/stat: its 22nd field. The second is the
/// program's name in brackets, which may hold blanks and brackets itself.
#[cfg(any(target_os = "linux", test))]
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok().filter(|&ticks| ticks > 0)
}

/// `2026-11-22T15:56:47Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let ([year, month, day], [hour, minute, second]) = civil(time);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `20261122-155647`: for file names, in an order that sorts by time.
pub fn compact(time: SystemTime) -> String {
    let ([year, month, day], [hour, minute, second]) = civil(time);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// (year, month, day) and (hour, minute, second) of `time`; a clock before 1970 reads as 1970.
fn civil(time: SystemTime) -> ([u64; 3], [u64; 3]) {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // Years that begin on 1 March put the leap day last: month lengths then repeat over five months (153 days). Days
    // are counted from 1 March of the year 0, in eras of 400 years, after which the calendar repeats.
    let since_march_0 = days + 719_468;
    let (era, day_of_era) = (since_march_0 / 146_097, since_march_0 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    ([year, month, day], [clock / 3_600, clock / 60 % 60, clock % 60])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_the_22nd_field_whatever_the_program_is_called() {
        let stat = "8889 (a (b) c) R 8840 8840 5433 0 -1 4194304 104 0 0 0 3 1 0 0 20 0 1 0 1713671 2998272 413 1 2";
        assert_eq!(start_ticks(stat), Some(1_713_671));
        assert_eq!(start_ticks("8889 (head) R 8840"), None);
        assert_eq!(start_ticks(&stat.replace("1713671", "0")), None, "a system that does not tell");
    }

    #[test]
    fn the_process_began_before_anybody_asked_and_not_long_before_this_test() {
        let (asked, first, second) = (Instant::now(), process_began(), process_began());
        assert_eq!(first, second);
        assert!(first <= asked.max(first) && first.elapsed() < Duration::from_secs(3600));
        if cfg!(target_os = "linux") {
            assert!(first < asked, "the system tells it");
        }
    }

    #[test]
    fn known_moments_read_as_they_should() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_363_007, "2026-11-22T15:56:47Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(compact(UNIX_EPOCH + Duration::from_secs(1_795_363_007)), "20261122-155647");
    }
}
