/** Every TypeScript snippet of the documents compiles, as a user would write it. */
import { spawnSync } from "node:child_process"
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import path from "node:path"
import { assert, describe, it } from "@effect/vitest"

const root = path.join(import.meta.dirname, "..")
const documents = ["README.md", "CONTRIBUTING.md"]

const snippets = documents.flatMap((document) => {
  const text = readFileSync(path.join(root, document), "utf8")
  return Array.from(text.matchAll(/^```ts\n(.*?)^```$/gms), ([, code], i) => ({
    file: `${path.basename(document, ".md")}-${i + 1}.ts`,
    code: code!
  }))
})

describe("the documents' snippets", () => {
  it("are found", () => assert.isAtLeast(snippets.length, 5))

  it("compile", () => {
    // Inside the project, so that they resolve its packages; outside the folders that its own checks read.
    const directory = path.join(root, "node_modules", ".cache", "snippets")
    rmSync(directory, { recursive: true, force: true })
    mkdirSync(directory, { recursive: true })
    for (const { code, file } of snippets) writeFileSync(path.join(directory, file), code)
    const source = path.join(root, "src")
    writeFileSync(
      path.join(directory, "tsconfig.json"),
      JSON.stringify({
        extends: path.join(root, "tsconfig.json"),
        compilerOptions: {
          noUnusedLocals: false,
          paths: {
            cohort: [path.join(source, "index.ts")],
            "cohort/layers/memory": [path.join(source, "layers", "memory", "index.ts")],
            "cohort/testing": [path.join(source, "testing", "index.ts")],
            "cohort/*": [path.join(source, "*")]
          }
        },
        include: ["*.ts"]
      })
    )
    const tsc = path.join(root, "node_modules", "typescript", "bin", "tsc")
    const { status, stdout } = spawnSync(process.execPath, [tsc, "-p", directory], { encoding: "utf8" })
    assert.strictEqual(status, 0, stdout)
  }, 120_000)
})
