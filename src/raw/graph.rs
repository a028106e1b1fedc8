//! The graph of waits: which load waits for which, and whether that goes round in a circle.
//!
//! A vertex is a load that waits, or is waited for, from inside the poll of a load; an edge says that a call
//! which was made inside load A waits for load B, or leads it. Nothing here knows keys, values or caches, so
//! the graph goes across all caches of a process. Loads that have no part in it have no vertex.
//!
//! * An **edge** belongs to the call that waits. It is in a cell on a list of its vertex that only grows;
//!   cells of calls that went are adopted. Its target is counted, and the count is given back after a grace
//!   period, so that whoever searches under a pin may follow it.
//! * **Drawing** an edge A → B: write it, `fence(SeqCst)`, then look for a way B → … → A. Of the calls that
//!   close a circle together, the one whose fence is the last sees the edges of all others: at least one of
//!   them is told. More than one may be.
//! * **No circle is reported that was none.** Edges come and go while a search walks, and a way put together
//!   from what was there at different times may never have been there. So a way that was found is read a
//!   second time: if all its edges are still the same ones, they were all there at the end of the first
//!   reading. Else the search starts over; somebody else's change made it, so the whole is lock-free.

use super::reclaim::{self, Guard};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::*, fence};
use std::collections::HashSet;
use std::ptr::{NonNull, null_mut};

/// A flight's place in the graph: its vertex, if it has one.
pub struct Place(AtomicPtr<Vertex>);

/// A load.
struct Vertex {
    /// The load has ended: what waits for it will find that out, and no way leads through it.
    closed: AtomicBool,
    first: AtomicPtr<Cell>,
}

/// Room for an edge.
struct Cell {
    target: AtomicPtr<Vertex>,
    /// Edges that have been here.
    version: AtomicU64,
    taken: AtomicBool,
    next: *mut Cell,
}

/// What [`Edge::draw`] answers when the wait would never end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circle;

impl Place {
    pub fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// The vertex; made if there is none.
    ///
    /// # Safety
    /// The caller is in the flight.
    unsafe fn vertex(&self) -> Arc<Vertex> {
        // Acquire: pairs with the CAS below, for what the maker wrote.
        let mut vertex = self.0.load(Acquire);
        if vertex.is_null() {
            let new = Arc::into_raw(Arc::new(Vertex::new())).cast_mut();
            // AcqRel: publishes the vertex; on failure acquires the other one.
            vertex = match self.0.compare_exchange(null_mut(), new, AcqRel, Acquire) {
                Ok(_) => new,
                Err(theirs) => {
                    // SAFETY: from `into_raw` above, and not published.
                    drop(unsafe { Arc::from_raw(new) });
                    theirs
                }
            };
        }
        // SAFETY: from `into_raw`; the place has a count until the last one has left the flight.
        unsafe {
            Arc::increment_strong_count(vertex);
            Arc::from_raw(vertex)
        }
    }

    /// The load has ended. By a caller that is in the flight.
    pub fn close(&self) {
        // SAFETY: the place has a count as long as anybody is in the flight. Acquire: as in `vertex`.
        if let Some(vertex) = unsafe { self.0.load(Acquire).as_ref() } {
            // Release: a hint, with nothing to carry. (A vertex that is made by a waiter which has not yet seen
            // the end misses it; that waiter's edge goes when it sees it.)
            vertex.closed.store(true, Release);
        }
    }

    /// Without a vertex, for the flight's next life.
    ///
    /// # Safety
    /// Nobody is in the flight.
    pub unsafe fn clear(&self) {
        self.close();
        // Relaxed: the caller is alone, as the flight's word told it with Acquire.
        let vertex = self.0.load(Relaxed);
        if !vertex.is_null() {
            self.0.store(null_mut(), Relaxed);
            // SAFETY: from `into_raw`; the place's count, given back once. Edges have counts of their own.
            drop(unsafe { Arc::from_raw(vertex) });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: `&mut self`.
        unsafe { self.clear() };
    }
}

impl Vertex {
    fn new() -> Self {
        Self { closed: AtomicBool::new(false), first: AtomicPtr::new(null_mut()) }
    }

    fn cells(&self) -> Option<&Cell> {
        // SAFETY: cells live as long as the vertex. Acquire: pairs with the push.
        unsafe { self.first.load(Acquire).as_ref() }
    }

    /// A cell of the caller's own: an abandoned one, or a new one.
    fn take_cell(&self) -> &Cell {
        let mut cell = self.cells();
        while let Some(c) = cell {
            // Acquire: pairs with the release in `erase`; the former owner is done with it.
            if !c.taken.load(Relaxed)
                && c.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
            {
                return c;
            }
            cell = c.next();
        }
        let mut first = self.first.load(Acquire);
        let cell = Box::into_raw(Box::new(Cell {
            target: AtomicPtr::new(null_mut()),
            version: AtomicU64::new(0),
            taken: AtomicBool::new(true),
            next: first,
        }));
        loop {
            // SAFETY: not yet published: ours alone.
            unsafe { (*cell).next = first };
            // AcqRel: publishes the cell.
            match self.first.compare_exchange_weak(first, cell, AcqRel, Acquire) {
                // SAFETY: from a Box; on the list now, so it lives as long as the vertex.
                Ok(_) => return unsafe { &*cell },
                Err(now) => first = now,
            }
        }
    }
}

impl Drop for Vertex {
    fn drop(&mut self) {
        // Relaxed: `&mut self`.
        let mut cell = self.first.load(Relaxed);
        while !cell.is_null() {
            // SAFETY: no edge of this vertex is left, as each holds it, and nobody searches here, as who does
            // came by an edge whose count is given back after its pin. From `Box::into_raw`.
            let owned = unsafe { Box::from_raw(cell) };
            cell = owned.next;
        }
    }
}

impl Cell {
    fn next(&self) -> Option<&Cell> {
        // SAFETY: `next` does not change after the push, and cells live as long as their vertex.
        unsafe { self.next.as_ref() }
    }

    /// Puts an edge in. By the owner of a cell without one.
    fn set(&self, target: Arc<Vertex>) {
        // The version before the target, each with Release: who reads this target with Acquire reads this
        // version or a later one. Relaxed load: the owner alone writes it.
        self.version.store(self.version.load(Relaxed).wrapping_add(1), Release);
        self.target.store(Arc::into_raw(target).cast_mut(), Release);
    }

    fn read(&self) -> Option<Step<'_>> {
        // Version first, target second; `Step::is_still` reads them the other way round.
        let version = self.version.load(Acquire);
        // SAFETY: the cell's count of its target is given back after a grace period; the caller is pinned.
        let target = unsafe { self.target.load(Acquire).as_ref() }?;
        Some(Step { cell: self, version, target })
    }
}

/// An edge that a search went along.
struct Step<'a> {
    cell: &'a Cell,
    version: u64,
    target: &'a Vertex,
}

impl Step<'_> {
    /// Has the edge been there ever since it was read, and does its load still run? A target that went and
    /// came back came with another version.
    fn is_still(&self) -> bool {
        cfg!(alru_mutation = "one_reading")
            || (std::ptr::eq(self.cell.target.load(Acquire), self.target)
                && self.cell.version.load(Acquire) == self.version
                && !self.target.closed.load(Acquire))
    }
}

/// Is there a way from `start` to `goal`? Steps along each edge once, deepest first.
fn leads(start: &Vertex, goal: &Vertex, _pinned: &Guard) -> bool {
    if std::ptr::eq(start, goal) {
        return true;
    }
    'anew: loop {
        let mut seen: HashSet<*const Vertex, foldhash::fast::FixedState> = HashSet::default();
        let mut way: Vec<Step<'_>> = Vec::new();
        let mut next = start.cells();
        loop {
            let Some(cell) = next else {
                match way.pop() {
                    None => return false,
                    Some(step) => next = step.cell.next(),
                }
                continue;
            };
            next = cell.next();
            let Some(step) = cell.read() else { continue };
            let target = step.target;
            // Acquire: as in `close`, a hint.
            if target.closed.load(Acquire) {
                continue;
            }
            if std::ptr::eq(target, goal) {
                way.push(step);
                if way.iter().all(Step::is_still) {
                    return true;
                }
                continue 'anew;
            }
            if seen.insert(target) {
                way.push(step);
                next = target.cells();
            }
        }
    }
}

/// The wait of one call that was made inside a load; none at first. Erased when dropped.
#[derive(Default)]
pub struct Edge(Option<(Arc<Vertex>, NonNull<Cell>)>);

// SAFETY: a cell is written by the edge's owner alone, wherever that is, through atomics; vertices hold no
// thread's own things.
unsafe impl Send for Edge {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Edge {}

impl Edge {
    /// From now on the load at `from` waits for the load at `to`, which is the same in all calls until
    /// [`Edge::erase`]; None: the call is not made inside a load. Costs next to nothing if that is not new.
    ///
    /// # Errors
    /// [`Circle`] if the load at `to` waits for that at `from`. There is no edge then.
    ///
    /// # Safety
    /// The caller, or a poll that it was called by, is in the flights of both places.
    pub unsafe fn draw(&mut self, from: Option<&Place>, to: &Place) -> Result<(), Circle> {
        let Some(from) = from else {
            self.erase();
            return Ok(());
        };
        if let Some((vertex, cell)) = &self.0 {
            // SAFETY: the vertex is kept.
            let target = unsafe { cell.as_ref() }.target.load(Relaxed);
            debug_assert!(
                std::ptr::eq(target, to.0.load(Relaxed)),
                "the wait is for the same load"
            );
            // Relaxed: the same pointer is the same vertex, which this edge keeps from being reused.
            if std::ptr::eq(from.0.load(Relaxed), Arc::as_ptr(vertex)) {
                return Ok(());
            }
        }
        self.erase();
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (from.vertex(), to.vertex()) };
        let cell = from.take_cell();
        cell.set(to.clone());
        self.0 = Some((from.clone(), NonNull::from(cell)));
        // Pairs with the fence of whoever draws another edge of the same circle: of any two, the later one
        // sees what the earlier one wrote.
        #[cfg(not(alru_mutation = "no_draw_fence"))]
        fence(SeqCst);
        if leads(&to, &from, &reclaim::pin()) {
            self.erase();
            return Err(Circle);
        }
        Ok(())
    }

    /// The call does not wait any more.
    pub fn erase(&mut self) {
        let Some((_from, cell)) = self.0.take() else { return };
        // SAFETY: `_from` keeps the vertex and with it the cell.
        let cell = unsafe { cell.as_ref() };
        // AcqRel: what this thread writes afterwards is seen only by who sees the edge gone.
        let target = Counted(cell.target.swap(null_mut(), AcqRel));
        // Release: pairs with the acquire in `take_cell`.
        cell.taken.store(false, Release);
        // SAFETY: plain memory, freed on any thread. Who read the target from the cell was pinned before this
        // pin ends.
        unsafe { reclaim::pin().defer(move || target.give_back()) };
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.erase();
    }
}

/// A cell's count of its target.
struct Counted(*mut Vertex);

// SAFETY: a vertex is shared by atomics.
unsafe impl Send for Counted {}

impl Counted {
    fn give_back(self) {
        // SAFETY: from `into_raw` in `set`, taken out of the cell once.
        drop(unsafe { Arc::from_raw(self.0) });
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    /// Draws an edge; the places of a test outlive its edges.
    fn draw(edge: &mut Edge, from: &Place, to: &Place) -> Result<(), Circle> {
        // SAFETY: the places have not been cleared.
        unsafe { edge.draw(Some(from), to) }
    }

    fn places<const N: usize>() -> ([Place; N], [Edge; N]) {
        (std::array::from_fn(|_| Place::new()), std::array::from_fn(|_| Edge::default()))
    }

    #[test]
    fn a_load_that_waits_for_itself_is_a_circle() {
        let ([a], [mut e]) = places();
        assert_eq!(draw(&mut e, &a, &a), Err(Circle));
        assert!(e.0.is_none());
    }

    #[test]
    fn the_edge_that_closes_a_circle_is_refused_and_the_others_stay() {
        let (p, mut e) = places::<50>();
        for i in 0..49 {
            assert_eq!(draw(&mut e[i], &p[i], &p[i + 1]), Ok(()));
        }
        for back in 0..49 {
            assert_eq!(draw(&mut e[49], &p[49], &p[back]), Err(Circle));
        }
        e[20].erase();
        assert_eq!(draw(&mut e[49], &p[49], &p[20]), Ok(()), "the chain was cut there");
        assert_eq!(draw(&mut e[20], &p[20], &p[21]), Err(Circle));
    }

    #[test]
    fn a_wait_that_is_over_closes_no_circle() {
        let ([a, b, c], [mut e, mut f, mut g]) = places();
        assert_eq!(draw(&mut e, &a, &b), Ok(()));
        assert_eq!(draw(&mut f, &b, &c), Ok(()));
        assert_eq!(draw(&mut g, &c, &a), Err(Circle));
        f.erase();
        assert_eq!(draw(&mut g, &c, &a), Ok(()));
        assert_eq!(draw(&mut f, &b, &c), Err(Circle));
    }

    #[test]
    fn no_way_leads_through_a_load_that_has_ended() {
        let ([a, b, c], [mut e, mut f, mut g]) = places();
        assert_eq!(draw(&mut e, &a, &b), Ok(()));
        assert_eq!(draw(&mut f, &b, &c), Ok(()));
        b.close();
        assert_eq!(draw(&mut g, &c, &a), Ok(()));
    }

    #[test]
    fn loads_that_wait_for_the_same_are_no_circle() {
        // Forty diamonds in a row: each vertex is walked through once, or this would never end.
        let (p, _) = places::<121>();
        let mut edges = Vec::new();
        let mut wait = |from: usize, to: usize| {
            edges.push(Edge::default());
            draw(edges.last_mut().expect("just pushed"), &p[from], &p[to])
        };
        for top in (0..120).step_by(3) {
            let [left, right, bottom] = [top + 1, top + 2, top + 3];
            for (from, to) in [(top, left), (top, right), (left, bottom), (right, bottom)] {
                assert_eq!(wait(from, to), Ok(()));
            }
        }
        assert_eq!(wait(120, 0), Err(Circle));
        let (other, mut last) = (Place::new(), Edge::default());
        assert_eq!(draw(&mut last, &other, &p[0]), Ok(()));
    }

    #[test]
    fn a_call_that_moves_to_another_load_or_out_of_all_loads_takes_its_edge_along() {
        let ([a, b, c], [mut e, mut f, _]) = places();
        assert_eq!(draw(&mut e, &a, &b), Ok(()));
        assert_eq!(draw(&mut e, &c, &b), Ok(()));
        assert_eq!(draw(&mut f, &b, &a), Ok(()), "a waits for b no more");
        f.erase();
        assert_eq!(draw(&mut f, &b, &c), Err(Circle));
        // SAFETY: as in `draw`.
        assert_eq!(unsafe { e.draw(None, &b) }, Ok(()));
        assert_eq!(draw(&mut f, &b, &c), Ok(()));
    }

    #[test]
    fn cells_are_used_again() {
        let ([a, b], [mut e, _]) = places();
        for _ in 0..1_000 {
            assert_eq!(draw(&mut e, &a, &b), Ok(()));
            e.erase();
        }
        // SAFETY: not cleared.
        let vertex = unsafe { a.vertex() };
        assert!(vertex.cells().is_some_and(|c| c.next().is_none()));
    }

    #[test]
    fn edges_outlive_the_places_that_they_were_drawn_between() {
        let ([a, b], [mut e, _]) = places();
        assert_eq!(draw(&mut e, &a, &b), Ok(()));
        drop((a, b));
        drop(e);
    }
}
