// What one session is told by a step of many.

package io.cosrt;

/**
 * What {@link Session#stepMany} tells of a session: a step or an error. A step without tokens whose finish is
 * {@link Finish#NONE} says that the session is in the middle of a round: there is no news of it yet.
 *
 * @param step  what the session has committed; null with an error
 * @param error a {@link CosException} of this session alone, or {@link IllegalStateException} if it is closed; or null
 */
public record News(StepResult step, RuntimeException error) {}
