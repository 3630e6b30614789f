//! The time that this process was on a processor. On a machine that others use too, it says more about
//! a program than the time on the wall.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// The time that this process has run so far, in steps of 10 ms. Threads that have ended are in it:
/// lapin has some for each connection.
pub(crate) fn used() -> Result<Duration> {
    let status = std::fs::read_to_string("/proc/self/stat");
    on_processor(&status.context("processor time is only known on Linux")?)
}

/// The sum of `utime` and `stime`, the 14th and 15th field, in ticks of `USER_HZ`, which is 100
/// (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>). The second field, the program's
/// name, is in parentheses and may hold anything.
fn on_processor(status: &str) -> Result<Duration> {
    let (_, fields) = status.rsplit_once(')').context("a stat without a name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("a short stat")?.parse()?) };
    let (user, system) = (ticks()?, ticks()?);
    Ok(Duration::from_millis((user + system) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_on_a_processor_is_user_and_system() {
        let status = "7 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 120 30 14 15 20";
        assert_eq!(on_processor(status).unwrap(), Duration::from_millis(1500));
        assert!(on_processor("7 (short) R 1 2").is_err());
    }

    #[test]
    fn the_time_of_a_thread_that_has_ended_counts() {
        let before = used().unwrap();
        let work = move || while used().unwrap() == before {};
        std::thread::spawn(work).join().unwrap();
        assert!(used().unwrap() > before);
    }
}
