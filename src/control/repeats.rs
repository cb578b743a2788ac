//! Tokens that would complete a banned run, or repeat one.

/// Call `ban` with each token that would complete a run of `banned` behind `tokens`.
pub fn completions(banned: &[Vec<i32>], tokens: &[i32], mut ban: impl FnMut(i32)) {
    for run in banned {
        let (&last, before) = run.split_last().expect("a run has tokens");
        if tokens.ends_with(before) {
            ban(last);
        }
    }
}

/// Call `ban` with each token that followed the last `length - 1` tokens when they came before.
pub fn repetitions(length: usize, tokens: &[i32], mut ban: impl FnMut(i32)) {
    let Some(before) = length.checked_sub(1).filter(|&before| before <= tokens.len()) else { return };
    let end = &tokens[tokens.len() - before..];
    tokens.windows(length).filter(|run| run[..before] == *end).for_each(|run| ban(run[before]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banned(find: impl FnOnce(&mut dyn FnMut(i32))) -> Vec<i32> {
        let mut found = Vec::new();
        find(&mut |token| found.push(token));
        found
    }

    #[test]
    fn a_run_is_banned_at_its_last_token() {
        let runs = [vec![4], vec![1, 2, 3], vec![2, 9]];
        assert_eq!(banned(|ban| completions(&runs, &[], ban)), [4]);
        assert_eq!(banned(|ban| completions(&runs, &[1, 2], ban)), [4, 3, 9]);
        assert_eq!(banned(|ban| completions(&runs, &[2, 1], ban)), [4]);
    }

    #[test]
    fn a_run_that_came_before_is_not_completed() {
        let tokens = [1, 2, 3, 1, 2, 4, 1, 2];
        assert_eq!(banned(|ban| repetitions(3, &tokens, ban)), [3, 4]);
        assert_eq!(banned(|ban| repetitions(2, &tokens, ban)), [3, 4]);
        assert_eq!(banned(|ban| repetitions(1, &[5, 6], ban)), [5, 6]);
        assert_eq!(banned(|ban| repetitions(0, &tokens, ban)), [0; 0]);
        assert_eq!(banned(|ban| repetitions(9, &tokens, ban)), [0; 0], "the text is shorter than the run");
        assert_eq!(banned(|ban| repetitions(10, &tokens, ban)), [0; 0]);
    }
}
