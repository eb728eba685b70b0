//! What the fuzz targets are made of. `cargo xtask fuzz` builds and runs them; what must hold is in
//! `testing/properties`.
#![forbid(unsafe_code)]

pub use libfuzzer_sys;

/// Makes a program that feeds one target: the frames, archives, documents, names, or a gate by the name of its type.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::feed(stringify!($name), data));
    };
}

/// Has a target look at some bytes.
///
/// # Panics
/// A property does not hold, or there is no such target.
pub fn feed(target: &str, data: &[u8]) {
    if target == banger_properties::frames::TARGET {
        banger_properties::frames::check(data);
        return;
    }
    if target == banger_properties::archives::TARGET {
        banger_properties::archives::check(data);
        return;
    }
    if target == banger_properties::manifests::TARGET {
        banger_properties::manifests::check(data);
        return;
    }
    if target == banger_properties::names::TARGET {
        banger_properties::names::check(data);
        return;
    }
    static GATE: std::sync::OnceLock<&banger_properties::Gate> = std::sync::OnceLock::new();
    let gate = GATE.get_or_init(|| {
        let mut gates = banger_properties::GATES.iter();
        gates.find(|gate| gate.target() == target).expect("a gate of that name")
    });
    (gate.check)(data);
}
