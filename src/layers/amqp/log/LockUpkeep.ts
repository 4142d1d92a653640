/**
 * What instances do for all: they say when leases have ended that nobody waits for, that an
 * instance is gone, and write snapshots. Each would do it; they come to it one after the other,
 * so that mostly one does.
 */
import * as Exit from "effect/Exit"
import type { Entry } from "./Fold.ts"
import type { Lock, LockFold } from "./LockFold.ts"
import type { ReplicatedLog } from "./ReplicatedLog.ts"

/**
 * Options of the lock store; times in milliseconds.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How long an instance may be silent before those of it who wait are passed over. Default 10,000. */
  readonly silence?: number | undefined
  /** How long to ask for a snapshot before locks begin anew. Longer than the longest ttl. Default 60,000. */
  readonly recovery?: number | undefined
  /** After which time a snapshot is due, if not after an eighth of what the log retains. Default an hour. */
  readonly snapshotMillis?: number | undefined
}

/** A lease that nobody waits for is ended that much later. */
const unhurried = 5_000
/** After which something is said again, if it was of no effect. */
export const again = 1_000

/**
 * When a lease has ended for those who do not hold it. A little later than for its holder, whose timers
 * may be late and whose clock may be slower: the work has stopped before the next holder comes.
 */
export const dueOf = ({ touchedAt, ttl }: Lock["owner"]): number => touchedAt + ttl * 1.001 + 10

export interface LockUpkeep {
  /** Says that a lease has ended. */
  readonly expire: (key: string) => void
  /** Asks for a snapshot. */
  readonly ask: () => void
  /** A record was read, and folded. */
  readonly noted: (entry: Entry) => void
  readonly beat: (now: number) => void
}

export const make = (
  log: ReplicatedLog["Service"],
  fold: LockFold,
  { recovery = 60_000, silence = 10_000, snapshotMillis = 3_600_000 }: Options
): LockUpkeep => {
  const { author, timers } = log
  const mostBytes = log.retention.maxBytes / 8
  const mostMillis = Math.min(snapshotMillis, log.retention.maxAge / 8)
  let bytes = 0
  let snapshotAt = timers.now()
  let snapshotDue: number | undefined
  let asked: { readonly offset: number; readonly at: number } | undefined
  /** Whether it is being asked, or locks are to begin anew: what comes of it is not known yet. */
  let asking = false

  const expire = (key: string) => {
    const touched = fold.locks.get(key)?.owner.touched
    if (touched !== undefined) log.send(() => ({ kind: "expire", key, touched }))
  }

  /** How many instances there are before this one. */
  const rank = (): number => {
    let before = 0
    for (const other of fold.seen.keys()) if (other < author) before++
    return before
  }

  const ask = () => {
    asked = undefined
    asking = true
    log.send(
      () => ({ kind: "ask" }),
      (exit) => {
        asking = false
        if (Exit.isSuccess(exit)) asked = { offset: exit.value.offset, at: timers.now() }
      }
    )
  }

  return {
    expire,
    ask,
    noted: ({ author: from, now, record, size }) => {
      bytes += size
      if (record.kind === "snapshot" || record.kind === "genesis") {
        bytes = 0
        snapshotAt = now
        snapshotDue = undefined
      } else if (record.kind === "ask" && from !== author) snapshotDue ??= now
    },
    beat: (now) => {
      if (!fold.known) {
        const since = asked
        // It was refused, or not answered in time.
        if (since === undefined) return asking ? undefined : ask()
        if (now - since.at <= recovery) return
        asked = undefined
        asking = true
        return void log.send(
          () => ({ kind: "genesis", asked: since.offset }),
          () => {
            asking = false
          }
        )
      }
      const turn = rank() * again
      if (bytes > mostBytes || now - snapshotAt > mostMillis) snapshotDue ??= now
      if (snapshotDue !== undefined && now >= snapshotDue + turn) log.send(() => fold.snapshot())
      for (const [key, { owner }] of fold.locks) if (now > dueOf(owner) + unhurried + turn) expire(key)
      for (const [other, { at, offset }] of fold.seen) {
        const gone = () => void log.send(() => ({ kind: "gone", author: other, seen: offset }))
        if (other === author) continue
        if (now - at > silence + turn) gone()
        else if (now - at > 1.5 * log.beat) log.probe(other, gone)
      }
    }
  }
}
