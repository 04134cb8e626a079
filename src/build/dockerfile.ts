import type { ArgInstruction, FromInstruction, StageInstruction } from "./instruction.ts";
import { type Directives, type LexedInstruction, lex } from "./lex.ts";
import { parseInstruction, parseStageInstruction } from "./parse-instruction.ts";
import { dockerfileError, quoted } from "./source.ts";
import type { Warning } from "./warning.ts";

const maxStages = 1000;

/** One `FROM` and what follows it. */
export interface Stage {
  number: number;
  /** Lower case; null: known by its number only. */
  name: string | null;
  from: FromInstruction;
  instructions: StageInstruction[];
}

/** A Dockerfile, understood but not yet expanded. */
export interface Dockerfile {
  directives: Directives;
  escape: string;
  /** The ARGs in front of the first FROM. */
  globalArgs: ArgInstruction[];
  stages: Stage[];
  warnings: Warning[];
}

/** Parses a Dockerfile. @throws BerthError `invalid_dockerfile` with line, column, the line and what was expected. */
export function parseDockerfile(text: string): Dockerfile {
  const { directives, escape, instructions, source } = lex(text);
  const globalArgs: ArgInstruction[] = [];
  const stages: Stage[] = [];
  const warnings: Warning[] = [];
  for (const lexed of instructions) {
    const instruction = parseInstruction(lexed, escape);
    const stage = stages.at(-1);
    warnAboutWriting(lexed, warnings);
    if (instruction.kind === "from") {
      if (stages.length === maxStages)
        throw dockerfileError(lexed.at, `a Dockerfile may have up to ${maxStages} stages.`);
      warnAboutName(lexed, stages, instruction, warnings);
      stages.push({ number: stages.length, name: instruction.name, from: instruction, instructions: [] });
    } else if (stage !== undefined) {
      stage.instructions.push(instruction);
    } else if (instruction.kind === "arg") {
      globalArgs.push(instruction);
    } else {
      throw dockerfileError(lexed.at, `${lexed.keyword} stands before the first FROM; only ARG may.`);
    }
  }
  if (stages.length === 0) {
    throw dockerfileError({ source, line: Math.max(1, source.lines.length), column: 1 }, "the Dockerfile has no FROM.");
  }
  return { directives, escape, globalArgs, stages, warnings };
}

/** The instruction of an ONBUILD trigger that an image carries. */
export function parseTrigger(trigger: string, reference: string): StageInstruction {
  const { instructions, escape, source } = lex(trigger, `ONBUILD of ${reference}`);
  const [only, ...more] = instructions;
  if (only === undefined || more.length > 0) {
    throw dockerfileError({ source, line: 1, column: 1 }, "a trigger must be one instruction.");
  }
  return parseStageInstruction(only, escape);
}

function warnAboutWriting(lexed: LexedInstruction, warnings: Warning[]): void {
  const { line } = lexed.at;
  if (lexed.emptyContinuation) {
    warnings.push({ code: "empty_continuation", message: "an empty line stands between continued lines", line });
  }
  if (lexed.keyword === "MAINTAINER") {
    const message = "MAINTAINER is deprecated; use LABEL org.opencontainers.image.authors=…";
    warnings.push({ code: "maintainer_deprecated", message, line });
  }
}

function warnAboutName(lexed: LexedInstruction, stages: Stage[], from: FromInstruction, warnings: Warning[]): void {
  const { line } = lexed.at;
  if (from.name === null) return;
  if (!lexed.args.text.includes(from.name)) {
    warnings.push({ code: "stage_name_casing", message: `stage names are lower case: ${from.name}`, line });
  }
  if (stages.some((stage) => stage.name === from.name)) {
    const message = `there are several stages named ${quoted(from.name)}; the last one counts`;
    warnings.push({ code: "duplicate_stage", message, line });
  }
}
