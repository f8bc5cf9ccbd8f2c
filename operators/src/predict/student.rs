//! Quantiles of Student's t distribution.

/// Quantile of the standard normal distribution for `p` above a half (Acklam's rational approximation, relative error 1.2e-9).
fn normal(p: f64) -> f64 {
    const A: [f64; 6] = [
        -39.696_830_286_653_76,
        220.946_098_424_520_5,
        -275.928_510_446_968_7,
        138.357_751_867_269,
        -30.664_798_066_147_16,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] =
        [-54.476_098_798_224_06, 161.585_836_858_040_9, -155.698_979_859_886_6, 66.801_311_887_719_72, -13.280_681_552_885_72];
    const C: [f64; 6] = [
        -0.007_784_894_002_430_293,
        -0.322_396_458_041_136_5,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] = [0.007_784_695_709_041_462, 0.322_467_129_070_039_8, 2.445_134_137_142_996, 3.754_408_661_907_416];
    let poly = |terms: &[f64], x: f64| terms.iter().fold(0.0, |sum, term| sum * x + term);
    if p > 1.0 - 0.024_25 {
        let q = (-2.0 * (1.0 - p).ln()).sqrt();
        return -poly(&C, q) / (poly(&D, q) * q + 1.0);
    }
    let q = p - 0.5;
    let r = q * q;
    poly(&A, r) * q / (poly(&B, r) * r + 1.0)
}

/// The value that |t| with `freedom` degrees stays below with probability `level`: exact for one and two degrees, else the
/// Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5), good to 1 % from three degrees up at levels to 0.99.
pub(super) fn two_sided(level: f64, freedom: u32) -> f64 {
    let p = 0.5 + level / 2.0;
    let n = f64::from(freedom);
    match freedom {
        0 => f64::INFINITY,
        1 => (std::f64::consts::PI * (p - 0.5)).tan(),
        2 => level * (2.0 / (1.0 - level * level)).sqrt(),
        _ => {
            let z = normal(p);
            let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
            z + (z3 + z) / (4.0 * n)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n * n * n)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::two_sided;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (level, freedom, expected) in
            [(0.9, 1, 6.314), (0.9, 2, 2.920), (0.9, 3, 2.353), (0.9, 6, 1.943), (0.95, 5, 2.571), (0.95, 30, 2.042), (0.99, 10, 3.169)]
        {
            let found = two_sided(level, freedom);
            assert!((found / expected - 1.0).abs() < 0.01, "{level} {freedom}: {found}, not {expected}");
        }
    }
}
