//! Prompt look-up: proposes the token that followed the same words before. It runs no model and costs next to nothing.
//!
//! The end of the sequence is sought further ahead in it, and the token behind the find is proposed (Saxena 2023,
//! `prompt-lookup-decoding`). That pays where text repeats itself: summaries, edited code, quotations. A look-up has no
//! distribution: its proposal is certain, so `q` is a point mass, and it never verifies.

/// Longest run of tokens that is compared. A longer match would hardly predict better.
const LONGEST: usize = 8;

/// Shortest match that counts. A single token is often a comma or an article, which says next to nothing of the token
/// behind it, and a rejected proposal makes the verifier's pass wider for nothing. Two tokens make a phrase.
const SHORTEST: usize = 2;

/// The token that followed the longest earlier occurrence of the end of `tokens`, the latest of equally long ones.
///
/// One scan from the end, which nearly always stops at the first comparison: microseconds for thousands of tokens.
pub fn successor(tokens: &[i32]) -> Option<i32> {
    let mut found = (SHORTEST - 1, None);
    for end in (SHORTEST..tokens.len()).rev() {
        // how far the tokens before `end` are the last ones
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev()).take(LONGEST);
        let length = pairs.take_while(|(a, b)| a == b).count();
        if length > found.0 {
            found = (length, Some(tokens[end]));
            if length == LONGEST {
                break;
            }
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_then_the_latest() {
        assert_eq!(successor(&[]), None);
        assert_eq!(successor(&[1]), None);
        assert_eq!(successor(&[1, 1]), None);
        assert_eq!(successor(&[1, 2, 3, 1]), None, "one token is no match");
        assert_eq!(successor(&[1, 2, 3, 1, 2]), Some(3));
        assert_eq!(successor(&[1, 2, 3, 1, 2, 4, 1, 2]), Some(4), "the latest of two");
        assert_eq!(successor(&[5, 1, 2, 3, 1, 2, 4, 5, 1, 2]), Some(3), "the longer one");
        assert_eq!(successor(&[7, 7, 7]), Some(7), "matches may overlap");
        assert_eq!(successor(&[1, 2, 3, 4, 5, 6]), None);
    }

    #[test]
    fn matches_are_compared_up_to_a_limit() {
        // Ten tokens match further ahead, the last eight of them later too: the later one wins.
        let phrase = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let tokens = [&phrase[..], &[20], &phrase[2..], &[21], &phrase].concat();
        assert_eq!(successor(&tokens), Some(21));
        // With seven the longer one does.
        let tokens = [&phrase[..], &[20], &phrase[3..], &[21], &phrase].concat();
        assert_eq!(successor(&tokens), Some(20));
    }
}
