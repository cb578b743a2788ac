"""Check the files for Kubernetes and Docker. The script `test` runs this: check.py TARGET COMPOSE_SCHEMA"""

import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
VERSIONS = ("1.30", "1.37")  # of Kubernetes: the oldest and the newest one


def expect(holds, what):
    if not holds:
        sys.exit(f"deploy: {what}")


def seconds(text):
    """A time such as 10m or 310s."""
    return sum(int(number) * {"s": 1, "m": 60}[unit] for number, unit in re.findall(r"(\d+)([ms])", text))


def options(arguments):
    """Options of the form --name=value."""
    pairs = (each.removeprefix("--").split("=", 1) for each in arguments if each.startswith("--"))
    return dict(pairs)


def kubernetes():
    """All objects have the schema of their kind, and nothing that it does not know."""
    folder = HERE / "kubernetes"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    others = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
    expect(set(names) == others, f"kustomization.yaml names {names}, and there are {others}")
    objects = [each for name in names for each in yaml.safe_load_all((folder / name).read_text())]
    for each in objects:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"deploy: {each['kind']} {each['metadata']['name']}, Kubernetes {version}: {error.message}")
    agree({(each["kind"], each["metadata"]["name"]): each for each in objects})
    print(f"deploy: {len(objects)} objects have the schemas of Kubernetes {' and '.join(VERSIONS)}, and agree")


def agree(objects):
    """Objects that name each other mean the same, and there is time to drain."""
    for (kind, name), each in objects.items():
        spec = each["spec"]
        pods = objects["Deployment", name]["spec"]["template"]
        [container] = pods["spec"]["containers"]
        labels = pods["metadata"]["labels"]
        selector = spec.get("selector", spec.get("podSelector", {}))
        selector = selector.get("matchLabels", selector)
        expect(selector.items() <= labels.items(), f"{kind} {name} selects no pods: {selector}")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        if kind == "Service":
            expect(all(port["targetPort"] in ports for port in spec["ports"]), f"{name} has no such port")
        if kind == "HorizontalPodAutoscaler":
            expect(spec["scaleTargetRef"]["name"] == name and spec["minReplicas"] >= 2, f"the target of {name}")
        if kind == "Deployment":
            expect("replicas" not in spec, f"{name}: replicas would be set back by each apply")
            scraped = pods["metadata"]["annotations"]["prometheus.io/port"]
            expect(int(scraped) in ports.values(), f"{name} has no port {scraped}")
            for probe in ("readinessProbe", "livenessProbe"):
                expect(container[probe]["httpGet"]["port"] in ports, f"the {probe} of {name}")
    names = ("cos-triton", "cos-gateway")
    triton, gateway = (objects["Deployment", name]["spec"]["template"]["spec"] for name in names)
    of_triton, of_gateway = (options(pod["containers"][0]["args"]) for pod in (triton, gateway))
    expect(triton["terminationGracePeriodSeconds"] > int(of_triton["exit-timeout-secs"]), "Triton is killed too early")
    drain = seconds(of_gateway["drain-delay"]) + seconds(of_gateway["timeout"])
    expect(gateway["terminationGracePeriodSeconds"] > drain, "the gateway is killed too early")
    host, port = of_gateway["replicas"].split(":")
    service = objects["Service", host]["spec"]
    expect(service["clusterIP"] == "None" and int(port) == service["ports"][0]["port"], "the replicas of the gateway")


def compose(schema):
    """The compose file has the schema, and there is time to drain."""
    text = yaml.safe_load((HERE / "compose.yaml").read_text())
    if pathlib.Path(schema).exists():
        try:
            jsonschema.Draft202012Validator(json.loads(pathlib.Path(schema).read_text())).validate(text)
        except jsonschema.ValidationError as error:
            sys.exit(f"deploy: compose.yaml: {error.json_path}: {error.message}")
        print("deploy: compose.yaml has its schema")
    else:
        print("deploy: the schema of compose.yaml: skipped, because its Go module cannot be fetched")
    for name, service in text["services"].items():
        build = service["build"]
        folders = [build["context"], *(volume["source"] for volume in service.get("volumes", []))]
        missing = [each for each in folders if not (HERE / each).is_dir()]
        expect(not missing, f"compose.yaml: {name} names folders that are not there: {missing}")
        expect((HERE / build["context"] / build["dockerfile"]).is_file(), f"there is no Dockerfile of {name}")
    image = (HERE / "triton.Dockerfile").read_text()
    limit = int(re.search(r"--exit-timeout-secs=(\d+)", image)[1])
    expect(seconds(text["services"]["triton"]["stop_grace_period"]) > limit, "compose kills Triton too early")
    fetched = re.search(r"^version=(.*)$", (ROOT / "scripts" / "fetch-onnxruntime").read_text(), re.M)[1]
    expect(f"onnxruntime-gpu=={fetched}" in image, f"triton.Dockerfile has another ONNX Runtime than {fetched}")
    return text["services"]["gateway"]["command"]


def programs(target, arguments):
    """The programs know the options that the files give them."""
    gateway, triton = target / "triton" / "gateway", target / "triton/server/pytriton/tritonserver/bin/tritonserver"
    for program, made_by in ((gateway, "bindings/triton/gateway/test"), (triton, "bindings/triton/test")):
        if not program.exists():
            print(f"deploy: options of programs: skipped, because there is no {program} ({made_by})")
            return
    def of(path):
        pods = next(yaml.safe_load_all((HERE / "kubernetes" / path).read_text()))["spec"]["template"]
        return pods["spec"]["containers"][0]["args"]

    for each in (arguments, of("gateway.yaml")):
        done = subprocess.run([gateway, *each, "--help"], capture_output=True, text=True)
        expect(done.returncode == 0, f"the gateway does not take {each}: {done.stderr}")
    known = subprocess.run([triton, "--help"], capture_output=True, text=True)
    for option in options(of("triton.yaml")):
        expect(f"--{option} " in known.stdout + known.stderr, f"Triton has no --{option}")
    print("deploy: the programs know their options")


def main():
    target, schema = pathlib.Path(sys.argv[1]), sys.argv[2]
    kubernetes()
    programs(target, compose(schema))


if __name__ == "__main__":
    main()
