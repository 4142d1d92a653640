/**
 * What failed in a run of the tests, from vitest's JSON report, and what became of it in a second run of those files.
 * Pending tests count as failed: nothing is skipped in silence.
 *
 * - `files <first>`: the files to run again, one a line.
 * - `count <first> <second>`: how many tests passed and failed; a file that ran twice counts as it ended the second time.
 * - `flaky <first> <second>`: says which tests failed and then passed.
 */
import { existsSync, readFileSync } from "node:fs"
import { relative } from "node:path"

interface TestFile {
  readonly name: string
  readonly status: string
  readonly message: string
  readonly assertionResults: ReadonlyArray<{ readonly fullName: string; readonly status: string }>
}

const read = (path: string | undefined): ReadonlyArray<TestFile> =>
  path === undefined || !existsSync(path) ? [] : JSON.parse(readFileSync(path, "utf8")).testResults

/** A file that cannot be read, or whose hooks fail, is one failure without a failed test. */
const failuresOf = ({ assertionResults, message, status }: TestFile): ReadonlyArray<string> => {
  const failures = assertionResults.filter(({ status }) => status !== "passed").map(({ fullName }) => fullName)
  return failures.length === 0 && status !== "passed" ? [`the file itself: ${message}`] : failures
}

const [what, firstPath, secondPath] = process.argv.slice(2)
const first = read(firstPath)
const second = new Map(read(secondPath).map((file) => [file.name, file]))
if (first.length === 0) throw new Error(`no results in ${firstPath}`)

const isSkipped = ({ assertionResults }: TestFile) =>
  assertionResults.every(({ status }) => status !== "failed") &&
  assertionResults.some(({ status }) => status !== "passed")

if (what === "files") {
  for (const file of first) {
    if (failuresOf(file).length > 0 && !isSkipped(file)) console.log(relative(process.cwd(), file.name))
  }
} else if (what === "count") {
  let passed = 0
  let failed = 0
  for (const file of first) {
    const last = second.get(file.name) ?? file
    passed += last.assertionResults.filter(({ status }) => status === "passed").length
    failed += failuresOf(last).length
  }
  console.log(passed, failed)
} else if (what === "flaky") {
  for (const file of first) {
    const last = second.get(file.name)
    if (last === undefined) continue
    const still = new Set(failuresOf(last))
    for (const failure of failuresOf(file)) {
      if (!still.has(failure)) console.log(`flaky: ${relative(process.cwd(), file.name)} > ${failure}`)
    }
  }
} else throw new Error(`unknown: ${what}`)
