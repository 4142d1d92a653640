/** Builds `dist/` from nothing: JavaScript, declarations and maps, and the files that are served as they are. */
import { spawnSync } from "node:child_process"
import { cpSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import path from "node:path"

const root = path.join(import.meta.dirname, "..")
rmSync(path.join(root, "dist"), { recursive: true, force: true })
const typescript = path.dirname(createRequire(import.meta.url).resolve("typescript/package.json"))
const { status } = spawnSync(
  process.execPath,
  [path.join(typescript, "bin", "tsc"), "-p", path.join(root, "tsconfig.build.json")],
  { stdio: "inherit" }
)
const assets = path.join("host", "page", "assets")
cpSync(path.join(root, "src", assets), path.join(root, "dist", assets), { recursive: true })
process.exit(status ?? 1)
