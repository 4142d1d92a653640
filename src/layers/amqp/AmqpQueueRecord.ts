/** Jobs and their ends as they are written to RabbitMQ. */
import type { DeadJob, DeathReason, NewJob } from "../../services/EventQueueStore.ts"
import { Payload } from "../../services/Payload.ts"

/** What a message carries of a job besides its payload. Times are in milliseconds. */
interface Meta {
  readonly id: string
  readonly publishedAt: number
  readonly timeout: number
  readonly maxRetries: number
  readonly keepId: number
  /** When this copy was published, if it is not the first, and how many deliveries of earlier ones did not count. */
  readonly since?: number
  readonly forgiven?: number
  /** The token of its claim, if its id is claimed. */
  readonly claim?: string
  /** Attempts that RabbitMQ's own count, which begins anew with each copy, does not know of. */
  readonly attempts: number
  readonly firstError?: string
  readonly lastError?: string
  /** Of a delay: what its end is known by. */
  readonly nonce?: string
  /** Until when it waits, when that is longer than the ladder. */
  readonly until?: number
}

export interface Job {
  readonly meta: Meta
  readonly payload: string
}

export const newJob = (job: NewJob, publishedAt: number, claim: string | undefined): Job => ({
  meta: {
    id: job.id,
    publishedAt,
    timeout: job.timeout,
    maxRetries: job.maxRetries,
    keepId: job.keepId,
    attempts: 0,
    ...(claim !== undefined && { claim })
  },
  payload: job.payload.json
})

export const writeJob = ({ meta, payload }: Job): Buffer => Buffer.from(`${JSON.stringify(meta)}\n${payload}`)

/** `undefined` for what is no job of ours. */
export const readJob = (content: Buffer): Job | undefined => {
  const text = content.toString("utf8")
  const end = text.indexOf("\n")
  try {
    const meta = JSON.parse(text.slice(0, end)) as Meta
    return typeof meta.id === "string" ? { meta, payload: text.slice(end + 1) } : undefined
  } catch {
    return undefined
  }
}

/** A death: its letter, and the job as it would be redriven. */
export interface Letter {
  readonly job: Job
  readonly attempts: number
  readonly reason: DeathReason
  readonly firstError: string
  readonly lastError: string
  readonly diedAt: number
}

export const deadJobOf = (letter: Letter): DeadJob => ({
  id: letter.job.meta.id,
  payload: Payload.fromJson(letter.job.payload),
  attempts: letter.attempts,
  reason: letter.reason,
  firstError: letter.firstError,
  lastError: letter.lastError,
  publishedAt: letter.job.meta.publishedAt,
  diedAt: letter.diedAt
})
