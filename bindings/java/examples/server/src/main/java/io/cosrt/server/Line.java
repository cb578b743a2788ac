// The line of requests.

package io.cosrt.server;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * Room for choices, and the line of requests that wait for it: first come, first served. A request that waits has no
 * thread. One that runs has a thread of its own, on which it waits for its tokens and for its client.
 */
final class Line {
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final Deque<Exchange> waiting = new ArrayDeque<>();
    private final int length;
    private int room;
    private int running;

    Line(int room, int length) {
        this.room = room;
        this.length = length;
    }

    /** Runs a request as soon as there is room. Returns false if too many wait. */
    synchronized boolean enter(Exchange exchange) {
        waiting.add(exchange);
        advance();
        if (waiting.size() <= length) {
            return true;
        }
        waiting.removeLast();
        return false;
    }

    /** Takes out a request that waits. Returns false if it does not. */
    synchronized boolean leave(Exchange exchange) {
        boolean waited = waiting.remove(exchange);
        advance(); // those behind it may find room
        return waited;
    }

    /** Gives back the room of a request that ran. */
    synchronized void end(Exchange exchange) {
        room += exchange.choices();
        running--;
        advance();
    }

    private void advance() {
        while (!waiting.isEmpty() && waiting.peek().choices() <= room) {
            Exchange next = waiting.remove();
            room -= next.choices();
            running++;
            try {
                threads.execute(next);
            } catch (Throwable e) { // the system has no thread
                room += next.choices();
                running--;
                next.fail(e);
            }
        }
    }

    synchronized int running() {
        return running;
    }

    synchronized int waiting() {
        return waiting.size();
    }
}
