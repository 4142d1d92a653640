/** The jobs and dead letters of one channel in memory; who has which, and until when. */
import * as MutableList from "effect/MutableList"
import type { DeadJob, DeathReason, Delivery, Depth, NewJob, Settlement } from "../../services/EventQueueStore.ts"
import { ExpiringMap } from "../../services/internal/ExpiringMap.ts"
import type { Timer, Timers } from "../../services/internal/Timers.ts"

export interface Stored {
  readonly job: NewJob
  readonly publishedAt: number
  attempts: number
  firstError: string | undefined
  lastError: string | undefined
  /** Changes with every attempt; 0 while nobody has the job. */
  token: number
  /** When the lease runs out, or when the delay has passed. */
  due: number
  /** The id of the instance that has it, or had it last. */
  by: string
  delay: Timer | undefined
}

export const fresh = (job: NewJob, publishedAt: number): Stored => ({
  job,
  publishedAt,
  attempts: 0,
  firstError: undefined,
  lastError: undefined,
  token: 0,
  due: 0,
  by: "",
  delay: undefined
})

/** A dead letter, and what it is redriven as. */
export interface Buried {
  readonly letter: DeadJob
  readonly job: NewJob
}

/** One channel: every job is in `jobs`, and in one of ready, delayed (it has a timer) and in flight. */
export class Channel {
  readonly jobs = new Map<string, Stored>()
  readonly ready = MutableList.make<Stored>()
  readonly inFlight = new Set<Stored>()
  readonly dead = new Map<string, Buried>()
  readonly endedIds: ExpiringMap<true>
  readonly waiting = new Set<() => void>()
  private readonly timers: Timers
  private readonly wallMillis: () => number
  private leaseCheck: Timer | undefined
  private lastToken = 0

  constructor(timers: Timers, wallMillis: () => number) {
    this.timers = timers
    this.wallMillis = wallMillis
    this.endedIds = new ExpiringMap(timers.now)
  }

  publish(job: NewJob): boolean {
    if (this.jobs.has(job.id) || this.endedIds.get(job.id)) return false
    this.add(fresh(job, this.wallMillis()), job.delay)
    return true
  }

  add(stored: Stored, delay: number): void {
    this.jobs.set(stored.job.id, stored)
    this.offer(stored, delay)
  }

  /** Makes a job ready after a delay. */
  private offer(stored: Stored, delay: number): void {
    stored.token = 0
    if (delay <= 0) {
      MutableList.append(this.ready, stored)
      this.wake()
      return
    }
    stored.due = this.timers.now() + delay
    stored.delay = this.timers.at(stored.due, () => {
      stored.delay = undefined
      MutableList.append(this.ready, stored)
      this.wake()
    })
  }

  private offerFirst(stored: Stored): void {
    stored.token = 0
    MutableList.prepend(this.ready, stored)
    this.wake()
  }

  private wake(): void {
    if (this.waiting.size === 0) return
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const wake of waiting) wake()
  }

  take(max: number, lease: number, by: string): ReadonlyArray<Delivery> {
    const deliveries: Array<Delivery> = []
    const due = this.timers.now() + lease
    while (deliveries.length < max && this.ready.length > 0) {
      const stored = MutableList.take(this.ready) as Stored
      stored.attempts++
      stored.token = ++this.lastToken
      stored.due = due
      stored.by = by
      this.inFlight.add(stored)
      deliveries.push({
        id: stored.job.id,
        payload: stored.job.payload,
        attempt: stored.attempts,
        timeout: stored.job.timeout,
        maxRetries: stored.job.maxRetries,
        lastError: stored.lastError,
        token: stored.token
      })
    }
    if (deliveries.length > 0) this.watchLeases(due)
    return deliveries
  }

  /** The job, if this delivery still has it. */
  private heldBy(delivery: Delivery): Stored | undefined {
    const stored = this.jobs.get(delivery.id)
    return stored !== undefined && stored.token === delivery.token ? stored : undefined
  }

  renew(delivery: Delivery, lease: number): boolean {
    const stored = this.heldBy(delivery)
    if (stored === undefined) return false
    stored.due = this.timers.now() + lease
    return true
  }

  settle({ delivery, outcome }: Settlement): boolean {
    const stored = this.heldBy(delivery)
    if (stored === undefined) return false
    this.inFlight.delete(stored)
    switch (outcome._tag) {
      case "ack":
        this.end(stored)
        break
      case "retry":
        this.noteError(stored, outcome.error)
        this.offer(stored, outcome.delay)
        break
      case "release":
        stored.attempts--
        if (outcome.delay > 0) this.offer(stored, outcome.delay)
        else this.offerFirst(stored)
        break
      case "bury":
        this.noteError(stored, outcome.error)
        this.end(stored)
        this.bury(stored, outcome.reason)
    }
    return true
  }

  private noteError(stored: Stored, error: string): void {
    stored.firstError ??= error
    stored.lastError = error
  }

  private end(stored: Stored): void {
    const { id, keepId } = stored.job
    this.jobs.delete(id)
    if (keepId > 0) this.endedIds.set(id, true, keepId)
  }

  private bury(stored: Stored, reason: DeathReason): void {
    const { id, maxRetries, payload } = stored.job
    this.dead.delete(id)
    this.dead.set(id, {
      job: stored.job,
      letter: {
        id,
        payload,
        // A worker that was lost on the last attempt is noticed by taking the job once more.
        attempts: Math.min(stored.attempts, maxRetries + 1),
        reason,
        firstError: stored.firstError ?? "",
        lastError: stored.lastError ?? "",
        publishedAt: stored.publishedAt,
        diedAt: this.wallMillis()
      }
    })
  }

  private watchLeases(due: number): void {
    if (this.leaseCheck !== undefined) {
      if (this.leaseCheck.pending && this.leaseCheck.due <= due) return
      this.timers.cancel(this.leaseCheck)
    }
    this.leaseCheck = this.timers.at(due, () => {
      const now = this.timers.now()
      let next = Number.POSITIVE_INFINITY
      for (const stored of [...this.inFlight]) {
        if (stored.due > now) next = Math.min(next, stored.due)
        else {
          this.inFlight.delete(stored)
          this.offerFirst(stored)
        }
      }
      if (next < Number.POSITIVE_INFINITY) this.watchLeases(next)
    })
  }

  /** Milliseconds until a delayed job is ready. */
  untilDue(stored: Stored): number {
    return stored.due - this.timers.now()
  }

  depth(): Depth {
    const ready = this.ready.length
    const inFlight = this.inFlight.size
    return { ready, inFlight, delayed: this.jobs.size - ready - inFlight, dead: this.dead.size }
  }

  redrive(ids: ReadonlyArray<string> | "all"): number {
    let redriven = 0
    for (const id of ids === "all" ? [...this.dead.keys()] : ids) {
      const buried = this.dead.get(id)
      if (buried === undefined || this.jobs.has(id)) continue
      this.dead.delete(id)
      this.add(fresh(buried.job, buried.letter.publishedAt), 0)
      redriven++
    }
    return redriven
  }

  discard(ids: ReadonlyArray<string> | "all"): number {
    return (ids === "all" ? [...this.dead.keys()] : ids).filter((id) => this.dead.delete(id)).length
  }
}
