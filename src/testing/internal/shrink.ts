/** Makes a failing schedule as short as it goes: delta debugging. */
import * as Effect from "effect/Effect"
import type { Step } from "./Schedule.ts"

/**
 * Finds a smaller schedule that still fails, by running at most `budget` others: first takes steps away, in ever
 * smaller parts, while the others keep their times; then takes time away.
 */
export const shrink = <E, R>(
  steps: ReadonlyArray<Step>,
  fails: (steps: ReadonlyArray<Step>) => Effect.Effect<boolean, E, R>,
  budget: number
): Effect.Effect<ReadonlyArray<Step>, E, R> =>
  Effect.gen(function* () {
    let best = steps
    let left = budget
    const improves = (candidate: ReadonlyArray<Step>) =>
      Effect.suspend(() => {
        if (left-- <= 0) return Effect.succeed(false)
        return Effect.map(fails(candidate), (failed) => {
          if (failed) best = candidate
          return failed
        })
      })

    for (let size = Math.ceil(best.length / 2); size >= 1 && left > 0; ) {
      let improved = false
      // From the end: what came last had the least to do with it.
      for (let from = Math.max(best.length - size, 0); left > 0; from -= size) {
        if (yield* improves(without(best, Math.max(from, 0), size))) improved = true
        if (from <= 0) break
      }
      if (size === 1 && !improved) break
      size = Math.max(1, Math.min(Math.floor(size / 2), best.length))
    }
    for (let i = 0; i < best.length && left > 0; i++) {
      for (const after of [0, Math.floor(best[i]!.after / 2)]) {
        if (after < best[i]!.after && (yield* improves(best.with(i, { ...best[i]!, after })))) break
      }
    }
    return best
  })

/** Without some steps; what comes after them keeps its time. */
const without = (steps: ReadonlyArray<Step>, from: number, count: number): ReadonlyArray<Step> => {
  const gap = steps.slice(from, from + count).reduce((sum, { after }) => sum + after, 0)
  const rest = steps.slice(from + count)
  return [
    ...steps.slice(0, from),
    ...rest.slice(0, 1).map((step) => ({ ...step, after: step.after + gap })),
    ...rest.slice(1)
  ]
}
