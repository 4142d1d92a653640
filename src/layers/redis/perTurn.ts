/**
 * Collects what is asked for within one turn of the event loop, so that it can be
 * asked of Redis at once: one command, one reply and one promise for many.
 */
export interface PerTurn<A> {
  readonly add: (item: A) => void
  /** Hands over now what was collected, to keep the order with what is sent directly. */
  readonly flush: () => void
}

/** Hands over at the end of the turn, and whenever `most` items have come together; then it calls `onFull`. */
export const make = <A>(
  handOver: (items: Array<A>) => void,
  most = Number.POSITIVE_INFINITY,
  onFull: () => void = () => {}
): PerTurn<A> => {
  let items: Array<A> = []
  let scheduled = false
  const flush = () => {
    if (items.length === 0) return
    const collected = items
    items = []
    handOver(collected)
  }
  const onTurn = () => {
    scheduled = false
    flush()
  }
  return {
    add: (item) => {
      if (items.push(item) >= most) {
        flush()
        return onFull()
      }
      if (scheduled) return
      scheduled = true
      process.nextTick(onTurn)
    },
    flush
  }
}
