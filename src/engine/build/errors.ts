import type { Step } from "../../build/step.ts";
import { BerthError } from "../../core/errors.ts";

/** The error with the step's line and instruction among its facts; what is not ours stays as it is. */
export function atStep(error: unknown, step: Pick<Step, "at" | "instruction">): unknown {
  if (!(error instanceof BerthError) || error.facts.line !== undefined) return error;
  const facts = { ...error.facts, line: step.at.line, instruction: step.instruction.slice(0, 500) };
  return new BerthError(error.code, error.message, { problems: error.problems, facts, cause: error });
}
