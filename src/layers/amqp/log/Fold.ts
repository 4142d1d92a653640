/** What is made of a log: the same on every instance that has read as far. */
import type { LogRecord } from "./LogRecord.ts"

/** A record where it stands in the log. */
export interface Entry {
  readonly offset: number
  /** Epoch plus offset. */
  readonly fence: number
  readonly author: string
  readonly record: LogRecord
  /** Monotonic milliseconds at which it was read. */
  readonly now: number
  /** Monotonic milliseconds: it was not appended earlier. */
  readonly since: number
  /** Unix time in milliseconds at which it was read. */
  readonly wall: number
  /** What RabbitMQ keeps of it, in bytes, roughly. */
  readonly size: number
}

/** What is made of the log. Nothing here may throw. */
export interface Fold {
  /** Forget everything: the log is read from `first`. */
  readonly begin: (first: number) => void
  /** The answer for the author, when the record is of this fold's kind. */
  readonly apply: (entry: Entry) => unknown
  /** All that was appended before this session has been read. */
  readonly live?: () => void
  /** The session has ended. */
  readonly away?: () => void
  /** Once each beat, while live. */
  readonly beat?: (now: number) => void
  /** Before a clean stop. */
  readonly close?: () => LogRecord | undefined
}

/** An own record that was read again. */
export interface Applied {
  readonly answer: unknown
  /** Monotonic milliseconds at which it was sent: not later than it was appended. */
  readonly sent: number
  readonly offset: number
}
