//! Accepting and rejecting proposals (Eq. 6 of the paper, after Leviathan et al. 2023 and Chen et al. 2023).

/// The probability with which a proposal drawn from `q` is accepted against the target `t`, given both
/// probabilities of the proposed token: `min(1, t / q)`.
///
/// `q` is positive, since the token was drawn from it.
pub fn acceptance(t: f32, q: f32) -> f64 {
    (f64::from(t) / f64::from(q)).min(1.0)
}

/// What a rejected proposal is replaced from: `max(0, t − q)`, not normalised.
///
/// A rejection implies that some of it is positive; should rounding leave nothing, the target itself is used.
pub fn residual(target: &[f32], proposal: &[f32], out: &mut [f32]) {
    let mut any = false;
    for ((out, &t), &q) in out.iter_mut().zip(target).zip(proposal) {
        *out = (t - q).max(0.0);
        any |= *out > 0.0;
    }
    if !any {
        out.copy_from_slice(target);
    }
}

/// [`residual`] of a proposal that was certain: the target without that token.
pub fn residual_of_certain(target: &[f32], token: usize, out: &mut [f32]) {
    out.copy_from_slice(target);
    out[token] = 0.0;
    if out.iter().all(|&t| t == 0.0) {
        out[token] = target[token];
    }
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

    #[test]
    fn residual_is_what_the_proposal_lacked() {
        let mut out = [9.0; 3];
        residual(&[0.5, 0.5, 0.0], &[0.75, 0.0, 0.25], &mut out);
        assert_eq!(out, [0.0, 0.5, 0.0]);
    }

    #[test]
    fn an_empty_residual_falls_back_to_the_target() {
        let mut out = [9.0; 2];
        residual(&[0.5, 0.5], &[0.5, 0.5], &mut out);
        assert_eq!(out, [0.5, 0.5]);
    }

    #[test]
    fn a_certain_proposal_has_a_point_mass() {
        let (target, point) = ([0.5, 0.3, 0.2], [0.0, 1.0, 0.0]);
        let (mut certain, mut general) = ([9.0; 3], [9.0; 3]);
        residual_of_certain(&target, 1, &mut certain);
        residual(&target, &point, &mut general);
        assert_eq!(certain, general);
        residual_of_certain(&point, 1, &mut certain);
        assert_eq!(certain, point, "an empty residual falls back to the target");
    }

    proptest::proptest! {
        /// Acceptance plus residual gives the target back, whatever the proposal: the heart of exactness.
        #[test]
        fn accepted_and_replaced_make_the_target(weights in proptest::collection::vec((0u32..9, 0u32..9), 2..9)) {
            let total = |pick: fn(&(u32, u32)) -> u32| weights.iter().map(pick).sum::<u32>().max(1) as f32;
            let (tt, qt) = (total(|w| w.0), total(|w| w.1));
            let t: Vec<f32> = weights.iter().map(|w| w.0 as f32 / tt).collect();
            let q: Vec<f32> = weights.iter().map(|w| w.1 as f32 / qt).collect();
            proptest::prop_assume!(t.iter().sum::<f32>() > 0.5 && q.iter().sum::<f32>() > 0.5);
            let mut left = vec![0.0; t.len()];
            residual(&t, &q, &mut left);
            let whole: f32 = left.iter().sum();
            let rejected: f64 = (0..t.len()).filter(|&x| q[x] > 0.0).map(|x| f64::from(q[x]) * (1.0 - acceptance(t[x], q[x]))).sum();
            for x in 0..t.len() {
                let accepted = if q[x] > 0.0 { f64::from(q[x]) * acceptance(t[x], q[x]) } else { 0.0 };
                let made = accepted + rejected * f64::from(left[x] / whole);
                proptest::prop_assert!((made - f64::from(t[x])).abs() < 1e-6);
            }
        }
    }
}
