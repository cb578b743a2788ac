//! Acceptance and rejection of proposals (Eq. 6 of the paper, after Leviathan et al. 2023 and Chen et al. 2023).

use crate::rows::{Distribution, kernels};

/// The probability that a proposal is accepted: `min(1, t / q)`.
///
/// `t` and `q` are the probabilities of the proposed token under the target and under the distribution that it was
/// drawn from. `q` is positive, since the token was drawn from it.
pub fn acceptance(t: f32, q: f32) -> f64 {
    (f64::from(t) / f64::from(q)).min(1.0)
}

/// Turn a target `t` into the residual `max(0, t − q)`, not normalised. A draw from it replaces a rejected proposal.
///
/// `proposal` is `q`, made from the row `scores`. Returns false if rounding has left nothing positive: draw from the
/// target itself then. In exact arithmetic a rejection implies that the residual is positive somewhere.
pub fn residual(target: &mut [f32], proposal: &Distribution, scores: &[f32]) -> bool {
    proposal.add(scores, -1.0, target);
    kernels::keep_positive(target)
}

/// The [`residual`] if `q` is a point mass on `token`: the target without that token.
pub fn residual_of_certain(target: &mut [f32], token: usize) -> bool {
    target[token] = 0.0;
    target.iter().any(|&t| t > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_up_to_the_ratio() {
        assert_eq!(acceptance(0.5, 0.25), 1.0);
        assert_eq!(acceptance(0.25, 0.5), 0.5);
        assert_eq!(acceptance(0.0, 0.5), 0.0);
    }

    /// A distribution and the scores that it is made from.
    fn made_of(row: &[f32]) -> (Distribution, Vec<f32>) {
        let scores: Vec<f32> = row.iter().map(|p| p.ln()).collect();
        (Distribution::softmax(&scores).unwrap(), scores)
    }

    #[test]
    fn the_residual_is_what_the_proposal_lacked() {
        let (proposal, scores) = made_of(&[0.75, 0.0, 0.25]);
        let mut target = [0.5, 0.5, 0.0];
        assert!(residual(&mut target, &proposal, &scores));
        assert_eq!(target, [0.0, 0.5, 0.0]);
    }

    #[test]
    fn an_empty_residual_is_reported() {
        let (proposal, scores) = made_of(&[0.5, 0.5]);
        assert!(!residual(&mut [0.5, 0.5], &proposal, &scores));
        assert!(!residual_of_certain(&mut [0.0, 1.0], 1));
    }

    #[test]
    fn the_residual_of_a_point_mass_needs_no_row() {
        let (proposal, scores) = made_of(&[0.0, 1.0, 0.0]);
        let (mut certain, mut general) = ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]);
        assert!(residual_of_certain(&mut certain, 1) && residual(&mut general, &proposal, &scores));
        assert_eq!(certain, general);
    }

    proptest::proptest! {
        /// Accepted and replaced tokens together follow the target, whatever the proposal. Exactness rests on this.
        #[test]
        fn accepted_and_replaced_make_the_target(weights in proptest::collection::vec((0u32..9, 0u32..9), 2..300)) {
            let total = |pick: fn(&(u32, u32)) -> u32| weights.iter().map(pick).sum::<u32>() as f32;
            let (tt, qt) = (total(|w| w.0), total(|w| w.1));
            proptest::prop_assume!(tt > 0.0 && qt > 0.0);
            let t: Vec<f32> = weights.iter().map(|w| w.0 as f32 / tt).collect();
            let (proposal, scores) = made_of(&weights.iter().map(|w| w.1 as f32).collect::<Vec<_>>());
            let q: Vec<f32> = (0..t.len()).map(|x| proposal.probability(&scores, x)).collect();
            let mut left = t.clone();
            if !residual(&mut left, &proposal, &scores) {
                left.copy_from_slice(&t);
            }
            let whole: f32 = left.iter().sum();
            let rejection = |x: usize| f64::from(q[x]) * (1.0 - acceptance(t[x], q[x]));
            let rejected: f64 = (0..t.len()).filter(|&x| q[x] > 0.0).map(rejection).sum();
            for x in 0..t.len() {
                let accepted = if q[x] > 0.0 { f64::from(q[x]) * acceptance(t[x], q[x]) } else { 0.0 };
                let made = accepted + rejected * f64::from(left[x] / whole);
                proptest::prop_assert!((made - f64::from(t[x])).abs() < 1e-6);
            }
        }
    }
}
