import { readFileSync } from "node:fs";
import openapiTS, { astToString, COMMENT_HEADER } from "openapi-typescript";
import { describe, expect, test } from "vitest";
import { stringify } from "yaml";
import { createApp } from "../../src/routes/app.ts";
import type { Services } from "../../src/routes/context.ts";
import { openapiDocument } from "../../src/routes/openapi.ts";

const file = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const document = openapiDocument(createApp({ corsOrigins: [], limits: {} } as unknown as Services));

interface Operation {
  operationId: string;
  summary: string;
  tags: string[];
  parameters?: { name: string; in: string }[];
  responses: Record<string, { description: string; content?: Record<string, unknown> }>;
}
const operations = Object.entries(document.paths ?? {}).flatMap(([path, item]) =>
  Object.entries(item as Record<string, Operation>).map(([method, operation]) => ({ method, path, operation })),
);

describe("openapi.yaml", () => {
  test("is what the routes say, and so is the client's type (npm run openapi)", async () => {
    expect(file("openapi.yaml")).toBe(stringify(document, { aliasDuplicateObjects: false, lineWidth: 120 }));
    const types = astToString(await openapiTS(file("openapi.yaml"), { defaultNonNullable: false }));
    expect(file("test/support/berth-api.d.ts")).toBe(`${COMMENT_HEADER}${types}`);
  });

  test.each(
    operations.map(({ method, path, operation }) => [operation.operationId, { method, path, operation }] as const),
  )("%s reads well: a verb and a noun, a summary, what it answers and its errors", (id, { method, operation }) => {
    expect(id).toMatch(/^[a-z]+[A-Z]\w+$/);
    expect(operation.summary.length).toBeGreaterThan(5);
    const answers = Object.keys(operation.responses).map(Number);
    expect(answers.some((status) => status < 300)).toBe(true);
    for (const [status, response] of Object.entries(operation.responses)) {
      if (Number(status) >= 400) expect(response.content).toHaveProperty(["application/problem+json"]);
    }
    expect(answers).toContain(500);
    // Every POST that makes or changes a project's things can be repeated safely; a webhook by its provider's own id.
    const headers = (operation.parameters ?? []).map(({ name }) => name);
    const safe = ["waitContainer", "execContainer", "drainHost", "activateHost", "receiveWebhook"];
    if (method === "post" && !safe.includes(id)) expect(headers).toContain("idempotency-key");
  });
});
