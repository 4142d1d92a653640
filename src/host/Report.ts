/**
 * The demo's report: what happened on which instance, with times, and whether it
 * was right.
 */
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"

/** A step whose outcome is known, and what it was. */
export interface Report {
  readonly heading: (text: string) => Effect.Effect<void>
  /** Something worth knowing. */
  readonly note: (text: string) => Effect.Effect<void>
  /** Runs a step; it is right when it returns text, wrong when it fails. */
  readonly step: <E, R>(name: string, run: Effect.Effect<string, E, R>) => Effect.Effect<void, never, R>
  /** Replaces the line under the cursor; printed as lines of their own where there is no terminal. */
  readonly progress: (text: string) => Effect.Effect<void>
  /** How many steps were right and wrong. */
  readonly result: Effect.Effect<{ readonly right: number; readonly wrong: number }>
}

/** Fails a step with what was seen instead. */
export const expect = (holds: boolean, seen: string): Effect.Effect<void, string> =>
  holds ? Effect.void : Effect.fail(seen)

export const make = (options: { readonly terminal: boolean }): Report => {
  let right = 0
  let wrong = 0
  let progressing = false

  const line = (text: string) =>
    Effect.suspend(() => {
      const clear = progressing && options.terminal ? "\r\x1b[2K" : ""
      progressing = false
      return Console.log(clear + text)
    })

  const millis = (from: bigint, to: bigint) => `${(Number(to - from) / 1e6).toFixed(0)} ms`

  return {
    heading: (text) => line(`\n${text}`),
    note: (text) => line(`    ${text}`),
    step: (name, run) =>
      Effect.gen(function* () {
        const from = yield* Clock.monotonicTimeNanos
        const result = yield* Effect.result(Effect.catchDefect(run, (defect) => Effect.fail(defect as unknown)))
        const time = millis(from, yield* Clock.monotonicTimeNanos)
        if (result._tag === "Success") {
          right++
          yield* line(`  ✓ ${name}  (${time})`)
          yield* line(`      ${result.success}`)
        } else {
          wrong++
          yield* line(`  ✗ ${name}  (${time})`)
          yield* line(`      ${describe(result.failure)}`)
        }
      }),
    progress: (text) =>
      Effect.suspend(() => {
        if (!options.terminal) return Console.log(`      ${text}`)
        progressing = true
        return Effect.sync(() => process.stdout.write(`\r\x1b[2K      ${text}`))
      }),
    result: Effect.sync(() => ({ right, wrong }))
  }
}

const describe = (failure: unknown): string =>
  typeof failure === "string"
    ? failure
    : failure instanceof Error
      ? `${failure.name}: ${failure.message}`
      : String(failure)
