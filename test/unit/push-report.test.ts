import { expect, test } from "vitest";
import { failureText } from "../../src/routes/git/push-report.ts";

test("a push tells why a build failed, where and at what, each once", () => {
  expect(
    failureText({
      code: "step_failed",
      line: 3,
      instruction: "RUN exit 7",
      message: "`RUN exit 7` ended with exit code 7.",
    }),
  ).toBe("Dockerfile line 3: RUN exit 7 ended with exit code 7.");
  expect(
    failureText({
      code: "invalid_context",
      line: 2,
      instruction: "COPY x /",
      message: '"/x" is not there to be copied.',
    }),
  ).toBe('Dockerfile line 2: COPY x /: "/x" is not there to be copied.');
  const shown = 'Dockerfile:1:1: there is no instruction "FORM"; did you mean FROM?\n  1 | FORM a\n    | ^';
  expect(failureText({ code: "invalid_dockerfile", line: 1, column: 1, message: shown })).toBe(shown);
  expect(failureText({ code: "ref_not_found", message: "There is no such branch." })).toBe("There is no such branch.");
});
