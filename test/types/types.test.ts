import { execFile } from "node:child_process"
import { readdirSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { assert, it } from "@effect/vitest"

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))

const compile = (...args: ReadonlyArray<string>) =>
  new Promise<{ readonly code: unknown; readonly output: string }>((resolve) =>
    execFile(
      process.execPath,
      [here("../../node_modules/typescript/bin/tsc"), "--noEmit", "--pretty", "false", ...args],
      { cwd: here(".") },
      (error, stdout, stderr) => resolve({ code: error === null ? 0 : error.code, output: stdout + stderr })
    )
  )

it("what must not compile does not, and what must compile does", { timeout: 120_000 }, async () => {
  const { code, output } = await compile("--project", here("tsconfig.json"))
  assert.strictEqual(output, "")
  assert.strictEqual(code, 0)
})

it("every file here is checked", { timeout: 120_000 }, async () => {
  const { output } = await compile("--project", here("tsconfig.json"), "--listFilesOnly")
  const checked = output.split("\n").map((file) => file.replaceAll("\\", "/"))
  for (const file of readdirSync(here("."))) {
    if (!file.endsWith(".ts") || file.endsWith(".test.ts")) continue
    assert.isTrue(
      checked.some((path) => path.endsWith(`/test/types/${file}`)),
      file
    )
  }
})
