/** What the plugins' stores on Redis have in common. */

/** Of all keys of an app's stores: in one hash slot, so that scripts may use several. */
export const prefix = (app: string): string => `cohort-host:{${app}}:`
