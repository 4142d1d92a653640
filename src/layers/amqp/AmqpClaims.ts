/**
 * Ids of jobs, claimed in the app's replicated log before a job is published.
 *
 * - **Nobody is told of a duplicate that is not there.** A claim is pending until its job is
 *   stored; whoever wants the same id meanwhile waits for what becomes of it, and fails if that takes longer than
 *   the timeout. A publisher that dies in between blocks its id for four timeouts (20 seconds).
 * - **An end is written down before its job is acknowledged.** Who dies in between leaves a job that runs again, while
 *   its id is free.
 * - A claim ends by itself a day after its job was last due to run: that is how long the id of
 *   a job stays known which an operator has purged, or deleted with its queue.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { Unavailable } from "../../services/Reason.ts"
import { ClaimFold, type Verdict } from "./log/ClaimFold.ts"
import { isRepetition } from "./log/LogRecord.ts"
import { ReplicatedLog } from "./log/ReplicatedLog.ts"

/** How long after it was last due to run a job still holds its id, in milliseconds. */
const day = 86_400_000
/** Within which a consumer is cancelled, in milliseconds. */
const cancelMillis = 1_000
/** What may be repeated at once, in bytes, if there were less news. */
const leastRepeated = 20_000
/** Claims in a record. */
const page = 200
/** How often what is over is dropped from memory. */
const sweepMillis = 30_000

export interface Claims {
  /** The token of the claim; `undefined` when the id is known. `dead`: one that was kept after its job's end is free. */
  readonly claim: (channel: string, id: string, dead: boolean) => Effect.Effect<string | undefined, Unavailable>
  /** The job is stored, and due after `delay` milliseconds. */
  readonly live: (claim: Claim, delay: number) => Effect.Effect<void, Unavailable>
  /** The job has ended, and its id is kept for some milliseconds. */
  readonly end: (claim: Claim, keep: number) => Effect.Effect<void, Unavailable>
  /** Nothing came of it; does not wait. */
  readonly drop: (claim: Claim) => Effect.Effect<void>
  /** Whether it holds its id, and the end of its job was not written down. */
  readonly isLiving: (claim: Claim) => boolean
  /** Whether the job of this claim has ended lately, or was given up by its publisher. */
  readonly isOver: (token: string) => boolean
  /** A consumer is about to be cancelled; every instance knows before. */
  readonly pause: (channel: string) => Effect.Effect<void, Unavailable>
  /** Until when one was last, in Unix milliseconds. */
  readonly pausedUntil: (channel: string) => number
}

interface Claim {
  readonly channel: string
  readonly id: string
  readonly token: string
}

export const make: Effect.Effect<Claims, never, ReplicatedLog> = Effect.gen(function* () {
  const log = yield* ReplicatedLog
  const clock = yield* Clock.clockWith(Effect.succeed)
  const wall = () => clock.currentTimeMillisUnsafe()
  const fold = new ClaimFold()
  let count = 0
  /** Who waits for a pending claim, by its token. */
  const waiting = new Map<string, Set<() => void>>()

  const wake = (token: string) => {
    const wakes = waiting.get(token)
    waiting.delete(token)
    for (const resume of wakes ?? []) resume()
  }

  // Instances do not repeat what another has: the one that is first spares the others.
  const share = 0.25 + (Number.parseInt(log.author.slice(0, 4), 16) / 0xffff) * 0.25
  const limits = { bytes: log.retention.maxBytes * share, millis: log.retention.maxAge * share }
  let swept = 0
  const mostRepeated = log.retention.maxBytes / 8
  /** How much was logged since claims were repeated, without repetitions. */
  let news = 0

  yield* log.attach({
    begin: (first) => {
      fold.begin(first)
      news = 0
      for (const token of [...waiting.keys()]) wake(token)
    },
    apply: ({ offset, record, size }) => {
      fold.pass(size)
      if (!isRepetition(record)) news += size
      switch (record.kind) {
        case "claim":
        case "keep":
        case "kept":
        case "pause": {
          const verdict = fold.apply(offset, record)
          if (record.kind === "keep") wake(record.token)
          return verdict
        }
        default:
          return undefined
      }
    },
    beat: (now) => {
      if (now - swept > sweepMillis) {
        swept = now
        fold.sweep(wall())
      }
      const claims = fold.repeat(limits, wall(), Math.min(Math.max(news, leastRepeated), mostRepeated))
      news = 0
      for (let i = 0; i < claims.length; i += page) {
        const some = claims.slice(i, i + page)
        log.send(() => ({ kind: "kept", at: wall(), asOf: log.offset(), claims: some }))
      }
    }
  })

  const untilChanged = ({ channel, id }: { readonly channel: string; readonly id: string }, token: string) =>
    Effect.callback<void>((resume) => {
      const current = fold.get(channel, id)
      if (current?.token !== token || current.state !== "pending") return resume(Effect.void)
      const wakes = waiting.get(token) ?? new Set()
      waiting.set(token, wakes)
      const done = () => resume(Effect.void)
      wakes.add(done)
      return Effect.sync(() => {
        wakes.delete(done)
        if (wakes.size === 0 && waiting.get(token) === wakes) waiting.delete(token)
      })
    })

  const drop = (claim: Claim) =>
    Effect.sync(() => {
      log.send(() => ({ kind: "keep", ...claim, state: "ended", at: wall(), until: 0 }))
    })

  const claim = (channel: string, id: string, dead: boolean): Effect.Effect<string | undefined, Unavailable> =>
    Effect.suspend(() => {
      const token = `${log.author}.${(count++).toString(36)}`
      const asked = log.append(() => {
        const at = wall()
        return { kind: "claim", channel, id, token, at, until: at + 4 * log.timeout, dead }
      })
      return Effect.flatMap(
        // It may come yet.
        Effect.onError(asked, () => drop({ channel, id, token })),
        ({ answer }) => {
          const verdict = answer as Verdict
          if (verdict === "granted") return Effect.succeed(token)
          if (verdict.state !== "pending") return Effect.succeed(undefined)
          // Of a publisher that has died nothing is heard: its claim ends by itself.
          const left = (fold.get(channel, id)?.until ?? 0) - wall()
          const changed = Effect.timeoutOption(untilChanged({ channel, id }, verdict.token), Math.max(left, 0) + 1)
          return Effect.andThen(changed, claim(channel, id, dead))
        }
      )
    })

  const keep = (claim: Claim, state: "living" | "ended", millis: number) =>
    Effect.asVoid(
      log.append(() => {
        const at = wall()
        return { kind: "keep", ...claim, state, at, until: at + millis }
      })
    )

  return {
    claim,
    live: (claim, delay) => keep(claim, "living", delay + day),
    end: (claim, millis) => keep(claim, "ended", millis),
    drop,
    isLiving: ({ channel, id, token }) => {
      const current = fold.get(channel, id)
      return current?.token === token && current.state !== "ended"
    },
    isOver: (token) => fold.isOver(token),
    pause: (channel) => Effect.asVoid(log.append(() => ({ kind: "pause", channel, until: wall() + cancelMillis }))),
    pausedUntil: (channel) => fold.pausedUntil(channel)
  }
})
