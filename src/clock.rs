//! The date and time in UTC, as people write them. Civil dates need a few lines of arithmetic, not a dependency.

use std::time::{SystemTime, UNIX_EPOCH};

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
    use std::time::Duration;

    use super::*;

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
