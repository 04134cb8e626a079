import { expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import { missingImages, planBuild } from "../../src/build/plan.ts";
import type { ImageConfig } from "../../src/core/image.ts";
import { planOptions } from "../support/plan-options.ts";

const rootfs = { type: "layers" as const, diff_ids: [] };

function warnings(text: string, args: Record<string, string> = {}, onBuild: string[] = []): string[] {
  const dockerfile = parseDockerfile(text);
  const options = planOptions({ args });
  const image: ImageConfig = {
    architecture: "amd64",
    os: "linux",
    config: { Env: ["PATH=/bin"], OnBuild: onBuild },
    rootfs,
  };
  const images = new Map(missingImages(dockerfile, options, new Map()).map(({ key }) => [key, image]));
  return planBuild(dockerfile, options, images).warnings.map(({ check, at }) => `${at.line} ${check}`);
}

const cases: [text: string, ...expected: string[]][] = [
  ["FROM debian AS Build", "1 StageNameCasing"],
  ["FROM debian as b", "1 FromAsCasing"],
  ["from debian as b\nrun x\nRUN y", "3 ConsistentInstructionCasing"],
  ["FROM debian\nRun x", "2 ConsistentInstructionCasing"],
  ["FROM debian AS a\nFROM debian AS a", "2 DuplicateStageName"],
  ["FROM debian AS context", "1 ReservedStageName"],
  ["FROM debian\nRUN a \\\n\n  b", "2 NoEmptyContinuation"],
  ["FROM debian\nMAINTAINER me", "2 MaintainerDeprecated"],
  ["FROM debian\nENV k v", "2 LegacyKeyValueFormat"],
  ["FROM debian\nENV API_TOKEN=1\nARG PUBLIC_KEY", "2 SecretsUsedInArgOrEnv"],
  ["FROM debian\nWORKDIR rel\nWORKDIR more", "2 WorkdirRelativePath"],
  ["FROM debian\nCMD run $nope", "2 JSONArgsRecommended"],
  ['FROM debian\nSHELL ["/bin/bash", "-c"]\nCMD run'],
  ["FROM debian\nCMD []\nCMD []\nENTRYPOINT []\nHEALTHCHECK NONE", "2 MultipleInstructionsDisallowed"],
  ["FROM debian\nLABEL x=$nope y=$nope z=${nope:-1}", "2 UndefinedVar"],
  ["FROM debian\nARG nope\nLABEL x=$nope"],
  ["FROM debian:$TAG", "1 UndefinedArgInFrom"],
  ["ARG B\nFROM ${B}", "2 InvalidDefaultArgInFrom"],
  ["ARG B\nFROM ${B:?needed}"],
  ["FROM --platform=$TARGETPLATFORM debian", "1 RedundantTargetPlatform"],
  ["FROM --platform=linux/amd64 debian", "1 FromPlatformFlagConstDisallowed"],
  ["FROM --platform=linux/amd64 debian AS build-amd64"],
  ["FROM --platform=$BUILDPLATFORM debian"],
  ["FROM debian\nEXPOSE 80/TCP 127.0.0.1:80:90", "2 ExposeInvalidFormat", "2 ExposeProtoCasing"],
];
test.each(cases.map(([text, ...expected]) => ({ text, expected })))("$text: $expected", ({ text, expected }) => {
  expect(warnings(text, { B: "debian" }).filter((one) => !one.includes("UnusedBuildArg"))).toEqual(expected);
});

test("a variable that is nearly one is suggested", () => {
  const dockerfile = parseDockerfile("FROM scratch\nARG VERSION=1\nLABEL x=$VERSOIN");
  const options = planOptions();
  expect(planBuild(dockerfile, options, new Map()).warnings.map(({ message }) => message)).toEqual([
    "the variable VERSOIN is not set; did you mean VERSION?",
  ]);
});

test("the check directive skips checks or makes them errors, and the build argument stands in for it", () => {
  const body = "FROM debian AS B\nCMD x";
  expect(warnings(`# check=skip=JSONArgsRecommended, StageNameCasing\n${body}`)).toEqual([]);
  expect(warnings(`# check=skip=all;error=true\n${body}`)).toEqual([]);
  expect(() => warnings(`# check=error=true;skip=StageNameCasing\n${body}`)).toThrow(
    /^Dockerfile:3:1: the check JSONArgsRecommended fails: /,
  );
  expect(() => warnings(body, { BUILDKIT_DOCKERFILE_CHECK: "error=true" })).toThrow(/StageNameCasing.*\(and 1 more\)/);
  expect(warnings(`# check=error=true\n${body}`, { BUILDKIT_DOCKERFILE_CHECK: "skip=all" })).toEqual([]);
  expect(() => warnings(`# check=skp=all\n${body}`)).toThrow(
    /:1:1: check has no option "skp=all"; did you mean skip\?/,
  );
  expect(() => warnings(`# check=error=maybe\n${body}`)).toThrow(/error must be true or false/);
});

test("a comment directly above an instruction has checks skipped there, on all its lines", () => {
  const above = (comment: string, line = "RUN echo \\\n  $a") => warnings(`FROM debian\n${comment}\n${line}\nCMD x`);
  expect(above("# check=skip=JSONArgsRecommended", "CMD y")).toEqual([
    "3 MultipleInstructionsDisallowed",
    "4 JSONArgsRecommended",
  ]);
  expect(above("# any\n# check=error=true;skip=all it is meant\n# more", "CMD $y")).toEqual(["6 JSONArgsRecommended"]);
  expect(above("# check=skip=all\n", "CMD y")).toContain("4 JSONArgsRecommended");
  expect(above("# check=what you like", "CMD y")).toContain("3 JSONArgsRecommended");
  expect(above("# check=skip=UndefinedVar", "LABEL a=1 \\\n  b=$nope")).toEqual(["5 JSONArgsRecommended"]);
});

test("build arguments that builders read need no ARG, and a base's triggers are not this file's", () => {
  const given = { BUILDKIT_INLINE_CACHE: "1", SOURCE_DATE_EPOCH: "0", HTTP_PROXY: "http://p" };
  expect(warnings("FROM debian", given)).toEqual([]);
  expect(warnings("FROM debian", { other: "1" })).toEqual(["1 UnusedBuildArg"]);
  expect(warnings("FROM debian", {}, ["LABEL x=$nope"])).toEqual([]);
});
