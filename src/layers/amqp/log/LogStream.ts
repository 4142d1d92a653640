/** What the replicated log needs of a broker: one total order of records, with offsets. */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Unavailable } from "../../../services/Reason.ts"

export interface LogStream {
  /**
   * Opens a session, which ends with its scope, or when the connection or the stream
   * goes; `onEnd` tells. The stream is made when there is none.
   *
   * Tails from an offset, or from the first record there is. Where that offset is gone, begins
   * with the first after it; where it is not there yet, is silent until it is. `onRecord` gets the records one after the other, in
   * the order of their offsets; it does not throw, and is not called within `append`.
   */
  readonly open: (options: {
    /** Who this is: while it lasts, the session is found by that name. */
    readonly author: string
    readonly from: number | "first"
    readonly onRecord: (offset: number, body: Buffer) => void
    readonly onEnd: (cause: unknown) => void
  }) => Effect.Effect<Session, Unavailable, Scope.Scope>
}

export interface Session {
  /**
   * Appends a record. Nothing tells that it was: that is known when it is read again.
   * `refused` is called when the broker says that it was not.
   */
  readonly append: (body: Buffer, refused: (cause: unknown) => void) => void
  /** Asks whether an author has a session; calls back when it has none, as far as the broker has noticed. */
  readonly probe: (author: string, absent: () => void) => void
}
