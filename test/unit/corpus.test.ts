import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import { missingImages, planBuild } from "../../src/build/plan.ts";
import type { BuildPlan } from "../../src/build/step.ts";
import type { ImageConfig } from "../../src/core/image.ts";
import { corpusDir, corpusList } from "../corpus/corpus.ts";
import { planOptions } from "../support/plan-options.ts";

const base: ImageConfig = {
  architecture: "amd64",
  os: "linux",
  config: { Env: ["PATH=/usr/bin:/bin", "HOME=/root"] },
  rootfs: { type: "layers", diff_ids: [] },
};

/** Plans every stage as a target of its own. */
function plans(text: string, args: Record<string, string> = {}): BuildPlan[] {
  const dockerfile = parseDockerfile(text);
  return dockerfile.stages.map(({ number }) => {
    const options = planOptions({ args, target: String(number) });
    const images = new Map(missingImages(dockerfile, options, new Map()).map(({ key }) => [key, base]));
    return planBuild(dockerfile, options, images);
  });
}

const list = corpusList();
const present = list.filter(({ sha256 }) => existsSync(join(corpusDir, sha256)));

test("the list has several hundred Dockerfiles, each once", () => {
  expect(list.length).toBeGreaterThan(300);
  expect(new Set(list.map(({ sha256 }) => sha256)).size).toBe(list.length);
});

test.skipIf(present.length === 0)("every Dockerfile of the corpus that was fetched parses and plans", () => {
  const failed = present.flatMap(({ sha256, url, args }) => {
    try {
      plans(readFileSync(join(corpusDir, sha256), "utf8"), args);
      return [];
    } catch (error) {
      return [`${url}: ${String(error)}`];
    }
  });
  expect(failed).toEqual([]);
});

const vendored = join(import.meta.dirname, "../corpus/vendored");
const own = new Map(readdirSync(vendored).map((name) => [name, readFileSync(join(vendored, name), "utf8")]));

test.each([...own])("%s parses and plans", (_name, text) => {
  expect(plans(text).at(-1)?.stages).not.toEqual([]);
});

/** How each construct of the language is spelt; docs/dockerfile.md lists them. */
const constructs = [
  ..."ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split(
    " ",
  ),
  ..."--platform --from --chown --chmod --link --parents --exclude --checksum --keep-git-dir --unpack --mount --network --security".split(
    " ",
  ),
  ..."--interval --timeout --start-period --start-interval --retries".split(" "),
  ..."type=bind type=cache type=tmpfs type=secret type=ssh sharing=shared sharing=private sharing=locked".split(" "),
  ..."# syntax= # escape= # check= <<EOF <<-TABS <<' <<\" :- :+ :? # ## % %% // scratch AS".split(" "),
];
test("the vendored files have every construct", () => {
  const all = [...own.values()].join("\n");
  expect(constructs.filter((construct) => !all.includes(construct))).toEqual([]);
});
