/** The same seed gives the same run: every byte of its timeline, in every process, on every Node. */
import { execFile } from "node:child_process"
import path from "node:path"
import { promisify } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { hashes } from "./timelines.ts"

const inProcess = (...flags: ReadonlyArray<string>) =>
  Effect.promise(async () => {
    const script = path.join(import.meta.dirname, "timelines.ts")
    const { stdout } = await promisify(execFile)(process.execPath, [...flags, script], { encoding: "utf8" })
    return JSON.parse(stdout) as Record<string, string>
  })

describe("a seed", () => {
  it.effect("gives what it gave on the Node that this was written on", () =>
    // Changes with Effect, and with the simulation itself; of Cohort it has little.
    Effect.map(hashes, ({ plain }) =>
      assert.strictEqual(plain, "fc0277fdda2fff974cf0f822318b32c3b4480c93640ba33e3597227d5fa560d9")
    )
  )

  it.effect(
    "gives the same twice, and in other processes, however those compile",
    () =>
      Effect.gen(function* () {
        const first = yield* hashes
        assert.isAtLeast(Object.keys(first).length, 7)
        assert.deepStrictEqual(yield* hashes, first)
        assert.deepStrictEqual(yield* inProcess(), first)
        assert.deepStrictEqual(yield* inProcess("--no-opt", "--hash-seed=5", "--random-seed=5"), first)
      }),
    120_000
  )
})
