//! Whose time is its own: passes that ran alone, whatever the order in which others begin and end.

use shuttle::sync::Arc;

use crate::wait::Crowd;

/// Orders that are tried.
const ORDERS: usize = 2000;

#[test]
fn a_pass_ran_alone_if_no_other_was_there_at_any_time() {
    shuttle::check_random(
        || {
            let crowd = Crowd::default();
            let alone = crowd.begin();
            assert!(crowd.ran_alone(alone));
            crowd.end();
            assert_eq!(crowd.waited(5), 5);
            let first = crowd.begin();
            let second = crowd.begin();
            assert!(!crowd.ran_alone(first) && !crowd.ran_alone(second));
            assert_eq!([crowd.waited(7), crowd.waited(1)], [7, 8], "the second one took no longer than both");
            crowd.end();
            assert!(!crowd.ran_alone(second), "the first one is over, but it was there");
            crowd.end();
            let alone = crowd.begin();
            assert!(crowd.ran_alone(alone));
        },
        1,
    );
}

#[test]
fn of_two_passes_at_the_same_time_none_ran_alone() {
    shuttle::check_random(
        || {
            let crowd = Arc::new(Crowd::default());
            let begin = |crowd: Arc<Crowd>| shuttle::thread::spawn(move || crowd.begin());
            let numbers = [(); 2].map(|()| begin(crowd.clone())).map(|thread| thread.join().unwrap());
            assert!(numbers.iter().all(|&number| !crowd.ran_alone(number)), "{numbers:?}");
        },
        ORDERS,
    );
}
