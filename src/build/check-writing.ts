import { parsePlatform } from "../core/platform.ts";
import type { Stage } from "./dockerfile.ts";
import type { FromInstruction } from "./instruction.ts";
import type { LexedInstruction } from "./lex.ts";
import { quoted } from "./source.ts";
import type { CheckName, Warning } from "./warning.ts";

/** Words that mean something else where a stage's name can stand. */
const reservedNames = new Set(["context", "scratch"]);

/** What a Dockerfile's text alone shows: casing, names, instructions that another one undoes. */
export function checkWriting(lexed: readonly LexedInstruction[], stages: readonly Stage[]): Warning[] {
  const warnings: Warning[] = [...checkCasing(lexed)];
  const froms = lexed.filter(({ keyword }) => keyword === "FROM");
  for (const { keyword, at, emptyContinuation } of lexed) {
    if (emptyContinuation) {
      warnings.push({ check: "NoEmptyContinuation", message: "an empty line stands between continued lines", at });
    }
    if (keyword === "MAINTAINER") {
      const message = "MAINTAINER is deprecated; use LABEL org.opencontainers.image.authors=…";
      warnings.push({ check: "MaintainerDeprecated", message, at });
    }
  }
  for (const [index, stage] of stages.entries()) {
    const from = froms[index];
    if (from !== undefined) warnings.push(...checkName(from, stage, stages.slice(0, index)));
    warnings.push(...checkPlatform(stage.from), ...checkOnlyOne(stage));
  }
  return warnings;
}

/** Instructions whose case is another than that of most. */
function checkCasing(lexed: readonly LexedInstruction[]): Warning[] {
  const upper = lexed.filter(({ written, keyword }) => written === keyword).length;
  const lower = lexed.filter(({ written }) => written === written.toLowerCase()).length;
  const [inCase, how] =
    lower > upper
      ? ([(text: string) => text.toLowerCase(), "lower case"] as const)
      : ([(text: string) => text.toUpperCase(), "upper case"] as const);
  return lexed
    .filter(({ written }) => written !== inCase(written))
    .map(({ written, at }) => {
      const message = `${written} should be in ${how}, as most instructions are`;
      return { check: "ConsistentInstructionCasing", message, at };
    });
}

function checkName(lexed: LexedInstruction, { name }: Stage, before: readonly Stage[]): Warning[] {
  if (name === null) return [];
  const { at, written } = lexed;
  const warnings: Warning[] = [];
  const warn = (check: CheckName, message: string) => warnings.push({ check, message, at });
  const [as = "", asWritten = ""] = lexed.args.text.split(/\s+/).slice(-2);
  if (asWritten !== name) warn("StageNameCasing", `stage names are lower case: ${name}`);
  if ((as === "as") !== (written === "from")) warn("FromAsCasing", `${written} and ${as} are in different cases`);
  if (reservedNames.has(name)) warn("ReservedStageName", `${name} is a reserved word, and no name for a stage`);
  if (before.some((stage) => stage.name === name)) {
    warn("DuplicateStageName", `there are several stages named ${quoted(name)}; the last one counts`);
  }
  return warnings;
}

function checkPlatform({ platform, name, at }: FromInstruction): Warning[] {
  if (platform === null) return [];
  if (/^\$(?:TARGETPLATFORM|\{TARGETPLATFORM\})$/.test(platform)) {
    const message = `--platform=${platform} says what is the default`;
    return [{ check: "RedundantTargetPlatform", message, at }];
  }
  const constant = platform.includes("$") ? null : parsePlatform(platform, { os: "linux", architecture: "" });
  if (constant === null || [constant.os, constant.architecture].some((part) => part !== "" && name?.includes(part))) {
    return [];
  }
  const message = `--platform=${platform.slice(0, 80)} keeps the stage from being built for another platform`;
  return [{ check: "FromPlatformFlagConstDisallowed", message, at }];
}

/** Of CMD, ENTRYPOINT and HEALTHCHECK a stage has one: those before the last do nothing. */
function checkOnlyOne({ instructions }: Stage): Warning[] {
  return instructions
    .filter(({ kind }, index) => {
      if (kind !== "cmd" && kind !== "entrypoint" && kind !== "healthcheck") return false;
      return instructions.slice(index + 1).some((later) => later.kind === kind);
    })
    .map(({ kind, at }) => {
      const message = `of several ${kind.toUpperCase()} in one stage only the last one counts`;
      return { check: "MultipleInstructionsDisallowed", message, at };
    });
}
