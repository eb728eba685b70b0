//! The tables against the helper as it runs: each refusal is due to the one value that is bad, and
//! changes nothing; before and after them the same request works.

use std::path::Path;

use banger_gate_tables::{Expect, Input, Kind, Parameter, fit, inputs as inputs_of, parameters};
use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::vmm;
use serde_json::Value;

use crate::enter_own_world;
use crate::scenery::{World, with_other_program};
use crate::snapshot::Snapshot;

/// What a parameter is called in a refusal.
fn name(parameter: &Parameter) -> String {
    let parts = parameter.pointer.split('/').skip(1);
    let parts = parts.filter(|part| part.parse::<u32>().is_err());
    let parts: Vec<&str> = parts.filter(|part| !["network", "files"].contains(part)).collect();
    parts.join(".")
}

/// Fails unless a request is refused for this one value.
fn assert_refused(
    world: &mut World,
    method: Method,
    parameter: &Parameter,
    input: &Input,
    own_failure: Option<&str>,
) {
    let mut params = world.base(method);
    fit(method, parameter.pointer, &mut params, &input.value);
    *params.pointer_mut(parameter.pointer).unwrap() = input.value.clone();
    let what = format!("{method}{} {}: {}", parameter.pointer, input.class, input.value);
    let outcome = world.call(method, &params);
    if input.expect == Expect::Nothing {
        let is_nothing = match &outcome {
            Ok(result) => result["running"] == false,
            Err((code, message)) => {
                *code == ErrorCode::OperationFailed && message.contains("none runs")
            }
        };
        assert!(is_nothing, "{what}: {outcome:?}");
        return;
    }
    let (code, message) = outcome.expect_err(&what);
    // serde's own words, which name the place and not the parameter.
    let is_undecoded = code == ErrorCode::BadParams && message.contains(" at line 1 column ");
    if input.expect == Expect::Refuse && is_undecoded {
        return;
    }
    assert_eq!(code, parameter.code, "{what}: {message}");
    // Both programs lie in that folder.
    let is_folders = input.class == "writable parent" && message.starts_with("binary_path: ");
    let is_named = message.starts_with(&format!("{}: ", name(parameter)));
    assert!(is_named || is_folders, "{what}: {message}");
    // Where the request cannot work at all, it is refused for another reason.
    let is_known = parameter.kind == Kind::DmDevice && input.expect == Expect::HostRefuse;
    assert!(is_known || own_failure != Some(message.as_str()), "{what}: {message}");
}

#[test]
fn what_the_tables_refuse_changes_nothing_on_the_host() {
    let Some(programs) = vmm::programs() else { return };
    for program in ["nft", "mke2fs"] {
        if banger_harness::find_program(program).is_none() {
            return banger_harness::skip(program, "every request of the tables is to work");
        }
    }
    enter_own_world();
    vmm::put_programs(&programs);
    let mut world = World::new();
    let (mut refusals, mut neighbours) = (0, 0);
    for &method in Method::ALL {
        for parameter in parameters(method) {
            let mut works = |world: &mut World, value: Option<&Value>| {
                let mut params = world.base(method);
                if let Some(value) = value {
                    fit(method, parameter.pointer, &mut params, value);
                    *params.pointer_mut(parameter.pointer).unwrap() = value.clone();
                }
                neighbours += 1;
                let failure = world.works(method, &params);
                world.make_ready();
                failure
            };
            let own_failure = works(&mut world, None);
            let inputs = inputs_of(parameter.kind, &world.places);
            let before = Snapshot::take_settled(&world.helper.directories);
            let is_refused = |input: &&Input| {
                [Expect::Refuse, Expect::HostRefuse, Expect::Nothing].contains(&input.expect)
            };
            for input in inputs.iter().filter(is_refused) {
                refusals += 1;
                let own_failure = own_failure.as_deref();
                let mut refused =
                    || assert_refused(&mut world, method, &parameter, input, own_failure);
                let is_program = [Kind::Firecracker, Kind::OptionalFirecracker, Kind::Jailer];
                match input.value.as_str() {
                    Some(path)
                        if is_program.contains(&parameter.kind)
                            && input.expect == Expect::HostRefuse =>
                    {
                        with_other_program(input.class, Path::new(path), refused);
                    }
                    _ => refused(),
                }
                let after = Snapshot::take(&world.helper.directories);
                let pointer = parameter.pointer;
                assert_eq!(before, after, "{method}{pointer} {}: {}", input.class, input.value);
            }
            for index in 0..inputs.len() {
                // A process that was ended has another pid when it is started again.
                let input = inputs_of(parameter.kind, &world.places).swap_remove(index);
                if input.expect == Expect::Works {
                    works(&mut world, Some(&input.value));
                }
            }
        }
    }
    assert!(refusals > 1000 && neighbours > 100, "{refusals} refusals, {neighbours} neighbours");
    assert!(!world.helper.log().contains("panicked"), "{}", world.helper.log());
}
