import { expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import { stepKey } from "../../src/build/keys.ts";
import { planBuild } from "../../src/build/plan.ts";
import type { LayerCompression } from "../../src/core/build-request.ts";
import { planOptions } from "../support/plan-options.ts";

/** The key of the last step, on the parent `p` and with the content `c`. */
function key(text: string, args: Record<string, string> = {}, compression: LayerCompression = "gzip"): string {
  const options = planOptions({ args });
  const plan = planBuild(parseDockerfile(`FROM scratch\n${text}`), options, new Map());
  const step = plan.stages.at(-1)?.steps.at(-1);
  if (step?.kind !== "run" && step?.kind !== "copy" && step?.kind !== "workdir") throw new Error("no such step");
  return stepKey("p", step, "c", { epoch: plan.epoch, compression });
}

const same: [string, string, string][] = [
  ["how the line is broken", "RUN a b", "RUN a\\\n b"],
  ["labels, commands and ports", "RUN a", "LABEL x=1\nCMD []\nEXPOSE 80\nRUN a"],
  ["the order in which the environment came about", "ENV a=1\nENV b=2\nRUN x", "ENV b=2\nENV a=1\nRUN x"],
  ["a spelling that expands to the same", "ENV v=x\nCOPY $v /d", "ENV v=x\nCOPY x /d"],
  ["a variable that COPY does not use", "COPY x /d", "ENV v=1\nCOPY x /d"],
  ["a WORKDIR that an absolute destination ignores", "COPY x /d", "WORKDIR /w\nCOPY x /d"],
];
test.each(same)("%s is no part of a key", (_what, one, other) => {
  expect(key(one)).toBe(key(other));
});

const different: [string, string, string][] = [
  ["the command", "RUN a", "RUN b"],
  ["its form", "RUN a", 'RUN ["a"]'],
  ["the shell", "RUN a", 'SHELL ["/bin/bash", "-c"]\nRUN a'],
  ["the environment", "RUN a", "ENV x=1\nRUN a"],
  ["an argument", "ARG x=1\nRUN a", "ARG x=2\nRUN a"],
  ["the user", "RUN a", "USER 1\nRUN a"],
  ["the directory", "RUN a", "WORKDIR /w\nRUN a"],
  ["the network", "RUN a", "RUN --network=none a"],
  ["a mount", "RUN a", "RUN --mount=type=tmpfs,target=/t a"],
  ["a script", "RUN <<E\n#!/a\n1\nE", "RUN <<E\n#!/a\n2\nE"],
  ["the destination", "COPY a /x", "COPY a /y"],
  ["its being a directory", "COPY a /x", "COPY a /x/"],
  ["the owner", "COPY a /x", "COPY --chown=1 a /x"],
  ["the mode", "COPY a /x", "COPY --chmod=600 a /x"],
  ["what is left out", "COPY a /x", "COPY --exclude=b a /x"],
  ["a link", "COPY a /x", "COPY --link a /x"],
  ["unpacking", "ADD a /x", "ADD --unpack=false a /x"],
  ["inline content", "COPY <<a /x\n1\na", "COPY <<a /x\n2\na"],
  ["a URL", "ADD http://h/a /x", "ADD http://h/b /x"],
];
test.each(different)("%s is part of a key", (_what, one, other) => {
  expect(key(one)).not.toBe(key(other));
  expect(key(one)).toBe(key(one));
});

test("of the build's arguments the epoch is part of a key, and proxies are none", () => {
  expect(key("RUN a", { SOURCE_DATE_EPOCH: "1" })).not.toBe(key("RUN a"));
  expect(key("RUN a", { HTTP_PROXY: "http://p" })).toBe(key("RUN a"));
});

test("the compression of layers is a part; keys of the usual one stay what they were, and what they name is found", () => {
  expect(key("RUN a", {}, "zstd")).not.toBe(key("RUN a"));
  expect(key("RUN a")).toBe("5cdd9906afb690283b406e18d8828443cad01485ed0e41415b87029613866e2e");
});

test("a layer of its own depends on nothing below, unless names are looked up there", () => {
  const plan = planBuild(
    parseDockerfile("FROM scratch\nCOPY --link a /x\nCOPY --link --chown=app a /x"),
    planOptions(),
    new Map(),
  );
  const keys = plan.stages[0]?.steps.map((step) =>
    step.kind === "copy"
      ? ["p", "q"].map((parent) => stepKey(parent, step, "c", { epoch: null, compression: "gzip" }))
      : [],
  );
  expect(keys?.map((two) => new Set(two).size)).toEqual([0, 1, 2]);
});
