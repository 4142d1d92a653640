/**
 * Every TypeScript snippet of the documents compiles, as a user would write it; those that are tests run; and those
 * that name a file are that file.
 */
import { spawnSync } from "node:child_process"
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { afterAll, assert, describe, it } from "@effect/vitest"

const root = path.join(import.meta.dirname, "..")
const guides = readdirSync(path.join(root, "docs")).filter((name) => name.endsWith(".md"))
const documents = ["README.md", "CONTRIBUTING.md", ...guides.map((name) => path.join("docs", name))]

const blocks = documents.flatMap((document) => {
  const text = readFileSync(path.join(root, document), "utf8")
  return Array.from(text.matchAll(/^```ts(?: (\S+))?\n(.*?)^```$/gms), ([, file, code], i) => ({
    document,
    /** The file that it shows, if it does. */
    shown: file,
    file: file === undefined ? `${path.basename(document, ".md")}-${i + 1}.ts` : path.basename(file),
    code: code!
  }))
})
const snippets = blocks.filter(({ shown }) => shown === undefined)
const shown = blocks.filter(({ shown }) => shown !== undefined)

describe("the documents' snippets", () => {
  it("are found", () => {
    assert.isAtLeast(snippets.length, 5)
    assert.isAtLeast(shown.length, 5)
  })

  for (const { code, document, shown: file } of shown) {
    it(`show ${file} as it is (${document})`, () => {
      assert.strictEqual(code, readFileSync(path.join(root, file!), "utf8"))
    })
  }

  it("show every example there is", () => {
    const files = readdirSync(path.join(root, "examples"), { recursive: true, encoding: "utf8" })
    assert.sameMembers(
      [...new Set(shown.map(({ shown }) => shown!))],
      files.filter((name) => name.endsWith(".ts")).map((name) => path.posix.join("examples", name))
    )
  })

  it("compile", () => {
    // Inside the project, so that they resolve its packages; outside the folders that its own checks read.
    const directory = path.join(root, "node_modules", ".cache", "snippets")
    rmSync(directory, { recursive: true, force: true })
    mkdirSync(directory, { recursive: true })
    for (const { code, file } of blocks) writeFileSync(path.join(directory, file), code)
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
            "cohort/plugins": [path.join(source, "plugins", "index.ts")],
            "cohort/testing": [path.join(source, "testing", "index.ts")],
            "cohort/testing/contracts": [path.join(source, "testing", "contracts", "index.ts")],
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

describe("the documents' links", () => {
  /** As GitHub makes them of headings. */
  const anchors = (text: string) =>
    Array.from(text.matchAll(/^#+ (.+)$/gm), ([, heading]) =>
      heading!
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-")
    )
  const all = [...documents, "CHANGELOG.md", path.join("bench", "README.md")]
    .flatMap((document) =>
      Array.from(readFileSync(path.join(root, document), "utf8").matchAll(/\]\(([^)\s]+)\)/g), ([, link]) => ({
        document,
        link: link!
      }))
    )
    .filter(({ link }) => !/^https?:/.test(link))

  it("lead to files and headings that are there", () => {
    assert.isAtLeast(all.length, 30)
    const broken = all.filter(({ document, link }) => {
      const [file, anchor] = link.split("#", 2)
      const target = file === "" ? path.join(root, document) : path.join(root, path.dirname(document), file!)
      return !existsSync(target) || (anchor !== undefined && !anchors(readFileSync(target, "utf8")).includes(anchor))
    })
    assert.deepStrictEqual(broken, [])
  })
})

// Those that are tests are tests of this file.
const directory = mkdtempSync(path.join(tmpdir(), "cohort-snippets-"))
symlinkSync(path.join(root, "node_modules"), path.join(directory, "node_modules"))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
for (const { code, file } of snippets.filter(({ code }) => code.includes("\nit."))) {
  writeFileSync(path.join(directory, file), code)
  await import(path.join(directory, file))
}
