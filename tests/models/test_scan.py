"""The scan of a model file before the runtime opens it: what reaches outside is refused, in which words."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto, TensorProto, TrainingInfoProto
from onnx.helper import (
    make_attribute,
    make_node,
)

from gateway.models.scan import ScanLimits
from tests.models.bad_models import (
    block,
    call,
    constant,
    external,
    function,
    graph_of,
    holder,
    model,
    number,
    sparse,
    weights,
    wire_model,
    wire_tensor,
)
from tests.models.scanning import refusal, report

OUTSIDE = "keeps its data outside the model file"


# Data outside the file


@pytest.mark.parametrize(
    "tensor",
    [
        external("/etc/passwd"),
        external("../../secret.bin"),
        external("C:\\secret.bin"),
        external("link_to_elsewhere"),
        external("linked_parent/weights.bin"),
        external("weights.bin", offset="-1"),
        external("weights.bin", length=str(10**15)),
        external("weights.bin", surprise="1"),
        external("*/_ORT_MEM_ADDR_/*", offset="140737488355328", length="8"),
        external(""),
    ],
    ids=lambda tensor: tensor.external_data[0].value or "empty",
)
def test_external_data_of_any_kind_is_refused_and_only_the_tensor_is_named(tensor: TensorProto) -> None:
    assert refusal(model(initializers=[tensor])) == (
        "Initialiser 'weights' keeps its data outside the model file, which is not allowed."
    )


def test_external_entries_are_refused_although_the_location_says_the_data_is_inside() -> None:
    tensor = weights()
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert OUTSIDE in refusal(model(initializers=[tensor]))


def test_an_external_location_is_refused_although_there_are_no_entries() -> None:
    tensor = weights()
    tensor.data_location = TensorProto.EXTERNAL
    assert OUTSIDE in refusal(model(initializers=[tensor]))


def test_an_external_location_written_with_more_than_32_bits_is_refused() -> None:
    """Parsers cut an enum to 32 bits, so this number is EXTERNAL to them."""
    crafted = wire_tensor("w", number(1, 0), number(2, 1), number(14, (1 << 32) + 1))
    assert ModelProto.FromString(crafted).graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert OUTSIDE in refusal(crafted)


def test_an_external_location_that_a_later_field_takes_back_is_refused() -> None:
    assert OUTSIDE in refusal(wire_tensor("w", number(1, 0), number(2, 1), number(14, 1), number(14, 0)))


def test_external_data_in_a_sparse_initialiser_is_refused() -> None:
    assert refusal(model(sparse=[sparse(external())])).startswith("Sparse initialiser 'weights' keeps its data outside")


def test_external_data_in_the_indices_of_a_sparse_initialiser_is_refused() -> None:
    assert OUTSIDE in refusal(model(sparse=[sparse(weights(), indices=external(name="at"))]))


def test_external_data_in_a_constant_is_refused_and_its_node_named() -> None:
    message = refusal(model([constant(external())]))
    assert message.startswith("Node 'the_constant', in an attribute: tensor 'weights' keeps its data outside")


def test_external_data_in_a_list_of_tensors_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(tensors=[weights(), external()])]))


def test_external_data_in_a_sparse_constant_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(sparse_tensor=sparse(external()))]))


def test_external_data_in_a_list_of_sparse_tensors_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(sparse_tensors=[sparse(weights()), sparse(external())])]))


def test_external_data_in_an_attribute_that_says_it_is_an_integer_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(type=onnx.AttributeProto.INT, i=1, t=external())]))


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_external_data_in_a_branch_of_an_if_is_refused(branch: str) -> None:
    branches = {"then_branch": graph_of(), "else_branch": graph_of(), branch: graph_of(initializers=[external()])}
    assert OUTSIDE in refusal(model([make_node("If", ["x"], ["z"], **branches)]))


def test_external_data_in_the_body_of_a_loop_is_refused() -> None:
    assert OUTSIDE in refusal(model([make_node("Loop", ["", "", "x"], ["z"], body=graph_of(constant(external())))]))


def test_external_data_in_a_scan_within_an_if_within_a_loop_is_refused() -> None:
    inner = make_node("Scan", ["x"], ["y"], body=graph_of(initializers=[external()]), num_scan_inputs=1)
    middle = make_node("If", ["x"], ["y"], then_branch=graph_of(inner), else_branch=graph_of())
    assert OUTSIDE in refusal(model([make_node("Loop", ["", "", "x"], ["z"], body=graph_of(middle))]))


def test_external_data_in_a_list_of_graphs_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(graphs=[graph_of(), graph_of(initializers=[external()])])]))


def test_external_data_in_the_second_of_two_pieces_of_a_graph_is_refused() -> None:
    """Protobuf merges two occurrences of the model's graph into one."""
    crafted = model().SerializeToString() + block(7, graph_of(initializers=[external()]).SerializeToString())
    assert ModelProto.FromString(crafted).graph.initializer[0].external_data
    assert OUTSIDE in refusal(crafted)


def test_external_data_in_the_first_of_two_pieces_of_a_tensor_is_refused() -> None:
    pieces = block(5, external().SerializeToString()) + block(5, weights("late").SerializeToString())
    assert OUTSIDE in refusal(wire_model(block(1, block(4, b"Constant") + block(5, pieces))))


def test_external_data_in_a_function_is_refused() -> None:
    crafted = model([call("f")], functions=[function("f", constant(external()))], domains=["local"])
    assert OUTSIDE in refusal(crafted)


def test_external_data_in_a_function_that_nobody_calls_is_refused() -> None:
    assert OUTSIDE in refusal(model(functions=[function("f", constant(external()))]))


def test_external_data_in_the_default_of_a_function_attribute_is_refused() -> None:
    crafted = function("f")
    crafted.attribute_proto.append(make_attribute("default", external()))
    message = refusal(model(functions=[crafted]))
    assert message.startswith("Function 'f', in an attribute: tensor 'weights' keeps its data outside")


@pytest.mark.parametrize("part", ["initialization", "algorithm"])
def test_external_data_in_a_training_graph_is_refused(part: str) -> None:
    crafted = model()
    crafted.training_info.append(TrainingInfoProto(**{part: graph_of(initializers=[external()])}))
    assert OUTSIDE in refusal(crafted)


# Operators


def test_a_custom_domain_is_refused_and_the_node_named() -> None:
    crafted = model([make_node("Magic", ["x"], ["z"], domain="com.example", name="wand")])
    assert refusal(crafted) == "Node 'wand' uses operators of domain 'com.example', which is not allowed."


def test_the_last_of_two_domains_of_a_node_counts_as_it_does_for_parsers() -> None:
    crafted = wire_model(block(1, block(4, b"Relu") + block(7, b"ai.onnx") + block(7, b"com.example")))
    assert ModelProto.FromString(crafted).graph.node[0].domain == "com.example"
    assert "'com.example'" in refusal(crafted)


def test_a_custom_domain_in_a_sub_graph_is_refused() -> None:
    branch = graph_of(make_node("Magic", ["x"], ["y"], domain="com.example", name="wand"))
    assert "Node 'wand'" in refusal(model([make_node("If", ["x"], ["z"], then_branch=branch)]))


def test_a_custom_domain_in_a_function_is_refused() -> None:
    crafted = model(functions=[function("f", make_node("Magic", ["x"], ["y"], domain="com.example", name="wand"))])
    assert "Node 'wand'" in refusal(crafted)


@pytest.mark.parametrize("domain", ["com.example", "ai.onnx\0"])
def test_importing_the_operators_of_a_domain_that_is_not_allowed_is_refused(domain: str) -> None:
    message = refusal(model(domains=[domain]))
    assert message == f"Operators of domain {domain!r}, imported by the model, are not allowed."


@pytest.mark.parametrize("domain", ["ai.onnx.training", "ai.onnx.preview.training", "com.microsoft.nchwc"])
def test_a_domain_of_the_runtime_may_be_imported_but_not_used(domain: str) -> None:
    assert report(model(domains=[domain])).opsets[domain] == 1
    used = model([make_node("Magic", ["x"], ["y"], domain=domain, name="wand")], domains=[domain])
    assert refusal(used) == f"Node 'wand' uses operators of domain {domain!r}, which is not allowed."


def test_a_function_that_imports_a_domain_that_is_not_allowed_is_refused() -> None:
    crafted = function("f")
    crafted.opset_import.add(domain="com.example", version=1)
    assert "imported by function 'f'" in refusal(model(functions=[crafted]))


@pytest.mark.parametrize("domain", ["com.microsoft", "org.pytorch.aten", "local", ""])
@pytest.mark.parametrize("op", ["ATen", "PythonOp", "EPContext"])
def test_an_operator_that_reaches_outside_is_refused_by_name_in_any_domain(op: str, domain: str) -> None:
    crafted = model([make_node(op, ["x"], ["z"], domain=domain, name="escape")])
    assert refusal(crafted) == f"Node 'escape' uses {op}, which reaches outside the model and is not allowed."


def test_the_allowed_domains_pass_under_either_name_of_the_default_one() -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"], domain="ai.onnx"),
        make_node("Scaler", ["a"], ["b"], domain="ai.onnx.ml"),
        make_node("Gelu", ["b"], ["c"], domain="com.microsoft"),
    ]
    seen = report(model(nodes, domains=["ai.onnx", "ai.onnx.ml", "com.microsoft"]))
    assert seen.op_types == {"Identity": 1, "Relu": 1, "ai.onnx.ml:Scaler": 1, "com.microsoft:Gelu": 1}


def test_a_function_of_the_model_in_a_domain_of_its_own_passes() -> None:
    crafted = model([call("f")], functions=[function("f", make_node("Relu", ["x"], ["y"]))], domains=["local"])
    seen = report(crafted)
    assert (seen.node_count, seen.op_types["local:f"], seen.opsets) == (3, 1, {"": 18, "local": 1})


def test_an_operator_that_the_functions_of_its_domain_do_not_define_is_refused() -> None:
    crafted = model([call("g")], functions=[function("f", make_node("Relu", ["x"], ["y"]))], domains=["local"])
    assert refusal(crafted) == "Node 'call_g' uses operators of domain 'local', which is not allowed."


def test_an_overload_that_the_functions_do_not_define_is_refused() -> None:
    node = call("f")
    node.overload = "other"
    assert "Node 'call_f' uses operators of domain 'local'" in refusal(model([node], functions=[function("f")]))


@pytest.mark.parametrize("domain", ["ai.onnx.preview.training", "com.microsoft.nchwc", "org.pytorch.aten"])
def test_a_function_may_not_pose_as_an_operator_of_the_runtime(domain: str) -> None:
    message = refusal(model(functions=[function("Adam", domain=domain)]))
    assert message == f"Function 'Adam' is in the reserved domain {domain!r}."


def test_a_function_may_not_take_the_name_of_an_operator_that_reaches_outside() -> None:
    assert "Function 'ATen' has the name" in refusal(model(functions=[function("ATen")]))


def test_a_function_that_calls_itself_through_another_is_refused() -> None:
    assert refusal(model(functions=[function("f", call("g")), function("g", call("f"))])).endswith("calls itself.")


def test_functions_that_double_the_nodes_at_every_level_are_refused() -> None:
    """Forty functions of two nodes each are a million million nodes once inlined."""
    functions = [function(f"f{level}", call(f"f{level + 1}"), call(f"f{level + 1}")) for level in range(40)]
    message = refusal(model([call("f0")], functions=[*functions, function("f40", make_node("Relu", ["x"], ["y"]))]))
    assert "nodes once function 'f" in message


def test_a_function_called_more_often_than_the_node_limit_allows_is_refused() -> None:
    relu = make_node("Relu", ["x"], ["y"])
    crafted = model([call("f")] * 4, functions=[function("f", relu, relu)], domains=["local"])
    assert report(crafted, ScanLimits(max_nodes=13)).node_count == 7
    assert "The model has 13 nodes once its functions are inlined" in refusal(crafted, ScanLimits(max_nodes=12))


def test_a_long_chain_of_function_calls_is_refused() -> None:
    chain = [function(f"f{level}", call(f"f{level + 1}")) for level in range(5000)]
    message = refusal(model([call("f0")], functions=[*chain, function("f5000")]))
    assert "nests calls deeper than 64 levels" in message
