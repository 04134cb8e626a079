// The counts of a vitest JSON report in one line: `12 passed, 0 failed, 1 skipped`. Exit code 0: some passed, none failed.
import { readFileSync } from "node:fs";

const file = process.argv[2] ?? "";
const text = readFileSync(file, "utf8");
if (text === "") {
  console.log("0 passed, 1 failed");
  process.exit(1);
}
const report = JSON.parse(text);
const passed = report.numPassedTests;
// A file that can't be loaded fails without a test of its own.
const broken = report.testResults.filter(
  (each) => each.status === "failed" && each.assertionResults.length === 0,
).length;
const failed = report.numFailedTests + broken;
const skipped = report.numPendingTests + report.numTodoTests;
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
